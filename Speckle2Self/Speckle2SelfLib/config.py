"""What a model is, how it is trained and how frames are despeckled, as plain frozen dataclasses.

The fields carry their help, unit and limits: the command line, the panels, the documentation and the checks read them
from there. Standard library only.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .system import InputError

ARCHITECTURES = ("fast", "published")
NORMALISATIONS = ("cine", "frame")
RECIPES = ("disjoint", "published")
FILTER_NAMES = ("median", "lee", "srad", "nlm", "curvature")


AXES = ("auto", "k", "j", "i", "average")


def option(
    default: Any = MISSING, help: str = "", *, low: float | None = None, high: float | None = None,
    choices: tuple[str, ...] = (), metavar: str | None = None, flag: str | None = None,
) -> Any:  # fmt: skip
    """Return a dataclass field that carries what a user should know of it.

    Args: help, a phrase; low, high, the smallest and largest value; choices, the values that are allowed; metavar,
    what the command line calls its value; flag, its name there where that is not the field's.
    """
    known = {"help": help, "low": low, "high": high, "choices": choices, "metavar": metavar, "flag": flag}
    return field(default=default, metadata=known)


def check_limits(config: Any) -> None:
    """Raise InputError where a field's value is outside its limits or is not one of its choices; None is allowed."""
    for each in fields(config):
        value, known = getattr(config, each.name), each.metadata
        if value is None or not known:
            continue
        low, high = known["low"], known["high"]
        if not (low is None or value >= low) or not (high is None or value <= high):  # NaN is outside
            upper = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise InputError(f"{each.name} must be {upper}, not {value}.")
        if known["choices"] and value not in known["choices"]:
            raise InputError(f"There is no {each.name} '{value}'; known are {', '.join(known['choices'])}.")


def help_of(kind: type, name: str) -> str:
    """Return the help of a config's field, for a tool tip or a table."""
    return next(each.metadata["help"] for each in fields(kind) if each.name == name)


def refuse_filter(name: str) -> None:
    """Raises InputError for a model's name that is a classical filter's: wherever models are named, that is taken."""
    if name.casefold() in FILTER_NAMES:
        raise InputError(f"'{name}' is a classical filter; choose another name for the model.")


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint needs besides its weights to be used the same way everywhere."""

    architecture: str = "fast"  # "fast": ours, no normalisation layers; "published": Li, Navab, Jiang 2025
    width: int = 32  # of the fast network: its half, itself and its double are the channels of the levels
    scales: int = 3  # "published" only: encoders in the checkpoint, 3, or 1 for the full-scale half alone
    normalisation: str = "cine"  # one grey mapping for the whole cine, or min-max of every frame (as published)
    grain: tuple[float, float] | None = None  # smallest and largest speckle grain, pixels; others are resampled to it

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"Unknown architecture '{self.architecture}'; known are {', '.join(ARCHITECTURES)}.")
        if self.normalisation not in NORMALISATIONS:
            raise InputError(f"Unknown normalisation '{self.normalisation}'; known are {', '.join(NORMALISATIONS)}.")
        if not 4 <= self.width <= 512:
            raise InputError(f"A width of {self.width} channels is outside 4 to 512.")
        if self.scales not in (1, 3):
            raise InputError(f"A published network has 3 encoders, or 1 for inference alone, not {self.scales}.")
        if self.grain is not None:
            object.__setattr__(self, "grain", tuple(float(g) for g in self.grain))
            if len(self.grain) != 2 or not 0.25 <= self.grain[0] <= self.grain[1] <= 64:
                raise InputError(f"A grain of {self.grain} is not two rising lengths between 0.25 and 64 pixels.")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained."""

    recipe: str = "disjoint"  # "disjoint": ours; "published": Li, Navab, Jiang 2025
    steps: int = 3000  # optimiser steps
    batch: int = 12  # frames (crops) a step
    crop: int = 128  # pixels at the model's grain
    learning_rate: float = 1e-3  # of Adam; falls to 1 % along a cosine, except in the published recipe
    simulated: int = 0  # anatomies simulated with known truth, of the recordings' grain, and mixed in
    share: float = 0.5  # of the steps that take simulated frames, when there are recorded ones too
    detail: float = 3.0  # further weight of errors in what is small; keeps more points and layers, makes up more, too
    lead: float = 0.0  # of the steps, in which the lattice's network learns alone, for one that is good already
    averaging: float = 0.995  # of the weights over the steps (exponential); 0: the last weights are kept
    seed: int = 0
    interval: int = 100  # steps from one validation and checkpoint to the next

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise InputError(f"Unknown recipe '{self.recipe}'; known are {', '.join(RECIPES)}.")
        for name, low, high in (
            ("steps", 1, 10**8),
            ("batch", 1, 4096),
            ("crop", 32, 4096),
            ("simulated", 0, 10**6),
            ("interval", 1, 10**6),
            ("seed", 0, 2**63 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} = {getattr(self, name)} is outside {low} to {high}.")
        shares = (self.share, self.lead, self.learning_rate)
        if not all(0 <= share <= 1 for share in shares) or not 0 <= self.averaging < 1 or not self.learning_rate:
            raise InputError("learning_rate, averaging, share and lead lie between 0 and 1.")
        if not 0 <= self.detail <= 100:
            raise InputError(f"detail = {self.detail} is outside 0 to 100.")


PRESETS = {
    "adapt": TrainingConfig(
        steps=600, learning_rate=3e-4, averaging=0.98, interval=50, simulated=400, lead=0.3, detail=0.3
    ),
    "standard": TrainingConfig(steps=3000, simulated=1500, share=0.75),
    "default": TrainingConfig(steps=52_000, batch=32, learning_rate=3e-3, simulated=20_000, interval=2000),
    "paper": TrainingConfig(recipe="published", steps=100_000, batch=16, crop=512, averaging=0.0),
}


@dataclass(frozen=True)
class Job:
    """One training run, as the command line, the panel and a cluster give it; as JSON, a job file."""

    output: str  # the model file to write
    inputs: tuple[str, ...] = ()  # recordings: files or folders
    held_out: tuple[str, ...] = ()  # recordings for validation alone; none: some are taken off the inputs
    preset: str = "standard"
    recipe: str | None = None  # this and the next four: other than the preset's
    steps: int | None = None
    simulated: int | None = None
    batch: int | None = None
    interval: int | None = None
    width: int | None = None  # of a new fast network; 64 takes three times as long as 32
    minutes: float | None = None  # to train for, instead of a number of steps; measured in a short warm-up
    seed: int | None = None  # 0
    init: str | None = None  # a model to start from; the preset "adapt" starts from "default"
    device: str = "auto"
    region: str = "auto"  # "none": whole frames; a mask file; a folder of masks named as the recordings
    report: int = 10  # steps from one report to the next
    preview: str | None = None  # a PNG file for a held-out frame before and after
    resume: bool = False  # go on with an interrupted run of this output
    estimate: bool = False  # do not train: report what it would take

    def __post_init__(self):
        for name in ("inputs", "held_out"):
            if isinstance(getattr(self, name), str):
                raise InputError(f"'{name}' is a list of files or folders.")
            object.__setattr__(self, name, tuple(str(path) for path in getattr(self, name)))
        refuse_filter(Path(self.output).name.removesuffix(".safetensors"))
        if self.preset not in PRESETS:
            raise InputError(f"Unknown preset '{self.preset}'; known are {', '.join(PRESETS)}.")
        if self.minutes is not None and not 0 < self.minutes <= 10**6:
            raise InputError(f"{self.minutes} minutes cannot be trained for.")
        if self.minutes is not None and self.steps is not None:
            raise InputError("Give a number of steps or of minutes, not both.")
        if not self.region:
            raise InputError("The region is 'auto', 'none' or a mask file.")
        if self.report < 1:
            raise InputError("There is at least one step from one report to the next.")
        _ = self.training  # its own checks

    @property
    def training(self) -> TrainingConfig:
        """The preset with what this job changes of it."""
        names = ("recipe", "steps", "simulated", "batch", "interval")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.recipe == "published":
            changes = {"simulated": 0} | changes  # the published method knows no truth
        if not self.inputs and self.preset != "default":
            changes = {"simulated": 0} | changes  # without recordings there is no grain to simulate
        return replace(PRESETS[self.preset], seed=self.seed or 0, **changes)


@dataclass(frozen=True)
class DespeckleOptions:
    """How a recording is despeckled: what the command line, the panel and the console ask for."""

    model: str = option("default", f"a model's name, a model file (also the authors' .pth), or a filter: "
                        f"{', '.join(FILTER_NAMES)}")  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda or mps")
    strength: float = option(1.0, "how much of the speckle to remove: 0 (the input) to 1 (despeckled)", low=0, high=1)
    gamma: float = option(1.0, "exponent on the despeckled grey values; above 1 darkens", low=0.2, high=5)
    axis: str = option("auto", "slices of a volume: auto, k (as stored), j, i, or average over all three", choices=AXES)
    region: str = option("auto", "auto detects the imaged region, none takes whole frames; or a mask")

    def __post_init__(self):
        check_limits(self)
        if not self.region:
            raise InputError("The region is 'auto', 'none' or a mask.")


def to_dict(config) -> dict:
    """A config as plain JSON types."""
    return asdict(config)


def from_dict(kind: type, values: dict):
    """The config of class `kind` from JSON types; an unknown or ill-typed entry raises InputError."""
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


def _fits(value, kind) -> bool:
    """Whether a JSON value is of a type such as int, str | None, tuple[float, ...] or dict[str, float]; floats are
    finite."""
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
