"""What a model is and how it is trained, as plain frozen dataclasses; standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

ARCHITECTURES = ("fast", "published")
NORMALISATIONS = ("cine", "frame")
RECIPES = ("disjoint", "published")


class InputError(ValueError):
    """The user's input cannot be used. The message is one sentence: what is wrong and what to do."""


class Cancelled(Exception):
    """The caller asked to stop; nothing was written."""


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint needs besides its weights to be used the same way everywhere."""

    architecture: str = "fast"  # "fast": ours, no normalisation layers; "published": Li, Navab, Jiang 2025
    width: int = 32  # channels of the fast network's first level
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
    simulated: int = 0  # anatomies simulated with known truth and mixed in
    share: float = 0.5  # of the steps that take simulated frames, when there are recorded ones too
    averaging: float = 0.995  # of the weights over the steps (exponential); 0: the last weights are kept
    seed: int = 0

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise InputError(f"Unknown recipe '{self.recipe}'; known are {', '.join(RECIPES)}.")
        for name, low, high in (
            ("steps", 1, 10**8),
            ("batch", 1, 4096),
            ("crop", 32, 4096),
            ("simulated", 0, 10**6),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} = {getattr(self, name)} is outside {low} to {high}.")
        if not 0 < self.learning_rate <= 1 or not 0 <= self.averaging < 1 or not 0 <= self.share <= 1:
            raise InputError("learning_rate, averaging and share lie between 0 and 1.")


PRESETS = {
    "adapt": TrainingConfig(steps=400, learning_rate=3e-4, averaging=0.98),
    "standard": TrainingConfig(steps=3000),
    "default": TrainingConfig(steps=1500, simulated=4000),
    "paper": TrainingConfig(recipe="published", steps=100_000, batch=16, crop=512, averaging=0.0),
}


def to_dict(config) -> dict:
    """A config as plain JSON types."""
    return asdict(config)


def from_dict(kind: type, values: dict):
    """The config of class `kind` from a dict; an unknown or ill-typed entry raises InputError."""
    known = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or set(values) - known:
        raise InputError(f"Not a {kind.__name__}: unknown entries {sorted(set(values) - known)}.")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise (error if isinstance(error, InputError) else InputError(f"Not a {kind.__name__}: {error}.")) from error
