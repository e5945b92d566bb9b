"""Plain frozen dataclasses: what a model is, how it is trained and how frames are despeckled.

The fields carry their help, unit and limits: the command line, the panels, the documentation and the checks read them
from there. Standard library only.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .system import InputError

ARCHITECTURES = ("fast", "published")
NORMALISATIONS = ("cine", "frame")
RECIPES = ("respeckle", "published")
WHOLE_FRAMES = ("published",)  # recipes that use whole frames where the region is "auto"
FILTER_NAMES = ("median", "lee", "srad", "nlm", "curvature")
AXES = ("auto", "k", "j", "i", "average")
Config = TypeVar("Config")  # a dataclass


def option(
    default: Any = MISSING, help: str = "", *, low: float | None = None, high: float | None = None,
    choices: tuple[str, ...] = (), metavar: str | None = None, flag: str | None = None,
) -> Any:  # fmt: skip
    """Return a dataclass field with its help and limits for users.

    Args: help, a phrase; low, high, the smallest and largest value; choices, the values that are allowed; metavar,
    what the command line calls its value; flag, its name there where that is not the field's.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "metavar": metavar, "flag": flag}
    return field(default=default, metadata=metadata)


def check_limits(config: Any) -> None:
    """Raise InputError if a field's value is outside its limits or is not one of its choices; None is allowed."""
    for entry in fields(config):
        value, metadata = getattr(config, entry.name), entry.metadata
        if value is None or not metadata:
            continue
        low, high = metadata["low"], metadata["high"]
        if not (low is None or value >= low) or not (high is None or value <= high):  # NaN is outside
            upper = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise InputError(f"{entry.name} must be {upper}, not {value}.")
        if metadata["choices"] and value not in metadata["choices"]:
            raise InputError(f"Unknown {entry.name} '{value}'; choose one of {', '.join(metadata['choices'])}.")


def help_of(kind: type, name: str) -> str:
    """Return the help of a config's field, for a tool tip or a table."""
    return next(entry.metadata["help"] for entry in fields(kind) if entry.name == name)


def refuse_filter(name: str) -> None:
    """Raise InputError if a model's name is reserved for a classical filter."""
    if name.casefold() in FILTER_NAMES:
        raise InputError(f"'{name}' is a classical filter; choose another name for the model.")


@dataclass(frozen=True)
class ModelConfig:
    """The settings that a checkpoint needs, in addition to its weights, to be used the same way everywhere."""

    architecture: str = option(
        "fast", "fast: ours, without normalization layers; published: Li, Navab, Jiang 2025", choices=ARCHITECTURES
    )
    width: int = option(
        32, "channels of the fast network's middle level; half and double at the others", low=4, high=512
    )
    deep: int = option(
        0, "blocks of the fast network at a sixteenth of a frame's resolution, with four times the channels; 0: none",
        low=0, high=8,
    )  # fmt: skip
    blocks: int = option(
        1, "blocks in a row of the fast network, twice at a quarter and twice at an eighth of the resolution",
        low=1, high=8,
    )  # fmt: skip
    uncertainty: bool = option(False, "whether the fast network also estimates the standard deviation of its errors")
    equality: bool = option(
        False, "whether the fast network also sees which neighboring pixels have the same value, to find graphics"
    )
    uncertainty_scale: float = option(
        1.0, "ratio of true to estimated deviation on held-out simulated frames; corrects estimates", low=1e-3, high=1e3
    )
    scales: int = option(3, "encoders of a published network: 3, or 1 for only the full-scale half", low=1, high=3)
    normalisation: str = option(
        "cine",
        "one grey mapping for the whole recording, or min-max of every frame (as published)",
        choices=NORMALISATIONS,
    )
    grain: tuple[float, float] | None = option(
        None, "smallest and largest speckle grain, pixels; other recordings are resampled to it"
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.scales == 2:
            raise InputError("A published network has 3 encoders, or 1 only for inference, not 2.")
        if self.architecture != "fast" and (self.deep or self.blocks > 1 or self.uncertainty or self.equality):
            raise InputError(
                "A published network has no deeper level, more blocks, second input or head for the uncertainty."
            )
        if self.grain is not None:
            object.__setattr__(self, "grain", tuple(float(g) for g in self.grain))
            if len(self.grain) != 2 or not 0.25 <= self.grain[0] <= self.grain[1] <= 64:
                raise InputError(
                    f"The grain must be two increasing lengths between 0.25 and 64 pixels, not {self.grain}."
                )


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained."""

    recipe: str = option("respeckle", "respeckle (ours) or published (Li, Navab, Jiang 2025)")
    steps: int = option(3000, "optimizer steps", low=1, high=10**8)
    batch: int = option(12, "crops in one step, over all processes", low=1, high=4096)
    crop: int = option(128, "side of a crop, pixels at the model's grain", low=32, high=4096)
    learning_rate: float = option(
        1e-3, "learning rate of Adam; falls to 1 % along a cosine, except in the published recipe", low=1e-9, high=1
    )
    simulated: int = option(0, "anatomies to simulate with known ground truth and to mix in", low=0, high=10**6)
    share: float = option(
        0.5, "fraction of the simulated anatomies that come from the recordings (recipe respeckle), or of the steps "
        "that use simulated frames", low=0, high=1,
    )  # fmt: skip
    averaging: float = option(
        0.995, "decay of the weights' exponential moving average; 0 keeps the last weights", low=0, high=1 - 1e-9
    )
    start_share: float = option(
        0.0, "share of the initial weights in the result, if training starts from a trained model", low=0, high=1
    )
    seed: int = option(0, "seed of all random choices", low=0, high=2**63 - 1)
    interval: int = option(100, "steps between two validations and checkpoints", low=1, high=10**6)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise InputError(f"Unknown recipe '{self.recipe}'; choose one of {', '.join(RECIPES)}.")
        check_limits(self)


PRESETS = {
    "adapt": TrainingConfig(
        "respeckle", steps=1000, learning_rate=5e-4, averaging=0.98, start_share=0.1, simulated=1200, share=0.65
    ),
    "standard": TrainingConfig("respeckle", steps=12_000, simulated=6000, share=0.35),
    "default": TrainingConfig(steps=40_000, batch=16, simulated=24_000, interval=2000, averaging=0.999),
    "paper": TrainingConfig(recipe="published", steps=100_000, batch=16, crop=512, averaging=0.0),
}


@dataclass(frozen=True)
class Job:
    """One training run as configured on the command line, in the panel or, as JSON, in a job file."""

    output: str = option(help="the model file to write", metavar="MODEL")
    inputs: tuple[str, ...] = option((), "recordings: files or folders", metavar="INPUT")
    held_out: tuple[str, ...] = option(
        (), "recordings used only for validation (default: some inputs)", metavar="INPUT"
    )
    preset: str = option(
        "standard",
        "adapt: fine-tune a model on your recordings; standard: train from scratch; paper: as published; "
        "default: the bundled model's settings, which take long",
        choices=tuple(PRESETS),
    )
    recipe: str | None = option(None, "respeckle (ours) or published (default: the preset's)")
    steps: int | None = option(None, "optimizer steps (default: the preset's)")
    simulated: int | None = option(None, "anatomies to simulate and mix in (default: the preset's)")
    batch: int | None = option(None, "crops in one step, over all processes (default: the preset's)")
    interval: int | None = option(None, "steps between two checkpoints (default: the preset's)")
    width: int | None = option(None, "channels of a new network; 64 is three times slower (default: 32)")
    deep: int | None = option(None, "blocks of a new network at a sixteenth of the resolution (default: 0)")
    uncertainty: bool = option(False, "a new network also learns how uncertain it is; needs simulated frames")
    minutes: float | None = option(None, "training time after the simulation, instead of a number of steps")
    seed: int | None = option(None, "seed of all random choices (default: 0)")
    init: str | None = option(
        None, "name or file of the model to start from (default: 'default' with adapt, else none)", metavar="MODEL"
    )
    device: str = option("auto", "auto, cpu, cuda or mps")
    region: str = option("auto", "auto, none, a mask file, or a folder of masks named like the recordings")
    report: int = option(10, "steps between two JSON lines")
    preview: str | None = option(
        None,
        "write a held-out frame before and after, and its uncertainty, at every validation",
        metavar="PNG",
    )
    resume: bool = option(False, "continue the interrupted run of this MODEL")
    estimate: bool = option(False, "do not train: report the time and memory needed")

    def __post_init__(self) -> None:
        for name in ("inputs", "held_out"):
            if isinstance(getattr(self, name), str):
                raise InputError(f"'{name}' must be a list of files or folders.")
            object.__setattr__(self, name, tuple(str(path) for path in getattr(self, name)))
        refuse_filter(Path(self.output).name.removesuffix(".safetensors"))
        if self.preset not in PRESETS:
            raise InputError(f"Unknown preset '{self.preset}'; choose one of {', '.join(PRESETS)}.")
        if self.minutes is not None and not 0 < self.minutes <= 10**6:
            raise InputError(f"Training time must be between 0 and 1,000,000 minutes, not {self.minutes}.")
        if self.minutes is not None and self.steps is not None:
            raise InputError("Choose a number of steps or of minutes, not both.")
        if not self.region:
            raise InputError("The region must be 'auto', 'none' or a mask file.")
        if self.report < 1:
            raise InputError(f"`report` must be at least 1, not {self.report}.")
        _ = self.training  # runs its checks

    @property
    def training(self) -> TrainingConfig:
        """Return the preset with the changes that this job makes."""
        names = ("recipe", "steps", "simulated", "batch", "interval")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.recipe == "published":
            changes = {"simulated": 0} | changes  # the published method uses no ground truth
        if not self.inputs and self.preset != "default":
            changes = {"simulated": 0} | changes  # without recordings there is no speckle size to simulate
        return replace(PRESETS[self.preset], seed=self.seed or 0, **changes)


@dataclass(frozen=True)
class DespeckleOptions:
    """How a recording is despeckled: the options of the command line, the panel and the console."""

    model: str = option("default", f"a model's name, a model file (also the authors' .pth), or a filter: "
                        f"{', '.join(FILTER_NAMES)}")  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda or mps")
    strength: float = option(1.0, "how much of the speckle to remove: 0 (the input) to 1 (despeckled)", low=0, high=1)
    gamma: float = option(1.0, "exponent on the despeckled grey values; above 1 darkens", low=0.2, high=5)
    cautious: float = option(
        0.0,
        "how much of the input to keep where the model is uncertain, from 0 to all (1); begins at an uncertainty of "
        "4 % of the grey range, complete from 6 %; for models that estimate it",
        low=0,
        high=1,
    )
    axis: str = option("auto", "slices of a volume: auto, k (as stored), j, i, or average over all three", choices=AXES)
    region: str = option("auto", "auto (detect the imaged region), none (whole frames), or a mask")

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", str(self.axis).lower())
        check_limits(self)
        if not self.region:
            raise InputError("The region must be 'auto', 'none' or a mask.")


@dataclass(frozen=True)
class ReadOptions:
    """How files are read if they do not contain the information."""

    dynamic_range: float | None = option(
        None, "signals and linear envelopes: dB to keep below the largest value (default: 60 if recognized)",
        low=1, high=200, metavar="DB",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_limits(self)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON types."""
    return asdict(config)


def from_dict(kind: type[Config], values: dict) -> Config:
    """Return the config of class `kind` from JSON types. Raises InputError for an unknown or ill-typed entry."""
    types = get_type_hints(kind)
    if not isinstance(values, dict) or set(values) - set(types):
        unknown = sorted(set(values) - set(types)) if isinstance(values, dict) else values
        raise InputError(f"Not a {kind.__name__}: unknown entries {unknown}.")
    for name, value in values.items():
        if not _fits(value, types[name]):
            raise InputError(f"Not a {kind.__name__}: {name} = {value!r:.100}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"Not a {kind.__name__}: {error}.") from error


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is of a type such as int, str | None, tuple[float, ...] or dict[str, float]; floats
    are finite."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return isinstance(value, list | tuple) and all(_fits(entry, inner) for entry in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(entry, get_args(kind)[1]) for entry in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e300
    return isinstance(value, kind)
