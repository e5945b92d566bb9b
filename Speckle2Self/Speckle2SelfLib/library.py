"""Find the available models: those that come with Speckle2Self, and the user's own in one folder. No torch at file
level."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import FILTER_NAMES, refuse_filter
from .metrics import FIGURES, JUDGED, TRUE_ERRORS
from .system import CANNOT_WRITE, FilePath, InputError, _, replace_file

if TYPE_CHECKING:
    from .checkpoint import Model

BUNDLED = Path(__file__).resolve().parent.parent / "Resources" / "Models"
SUFFIX = ".safetensors"
LONGEST, BYTES = 80, 220  # longest model name: characters, and bytes; file systems allow 255 with prefix and suffix

TAKEN = _("There is a model '{name}' already; choose another name.")
NO_MODEL = _("There is no model '{name}'.")


def home() -> Path:
    """Return the user's folder for models and training runs: `.speckle2self` in the home folder, or
    $SPECKLE2SELF_HOME."""
    return Path(os.environ.get("SPECKLE2SELF_HOME") or Path.home() / ".speckle2self")


def bundled_models() -> dict[str, Path]:
    """Return name -> file of the models that come with Speckle2Self, `default` first."""
    files = {path.stem: path for path in sorted(BUNDLED.glob(f"*{SUFFIX}"))}
    return {name: files[name] for name in sorted(files, key=lambda name: (name != "default", name))}


def own_models() -> dict[str, Path]:
    """Return name -> file of the models that the user trained or imported."""
    return {path.stem: path for path in sorted((home() / "models").glob(f"*{SUFFIX}"))}


def models() -> dict[str, Path]:
    """Return name -> file of all models, the bundled ones first; a bundled model hides the user's model of the same
    name."""
    bundled = bundled_models()
    return bundled | {name: path for name, path in own_models().items() if name not in bundled}


def path_of(name_or_path: FilePath) -> Path:
    """Return the file of a model by its name, bundled or the user's own; any other name is a path."""
    return models().get(str(name_or_path), Path(name_or_path))


def load_model(name_or_path: FilePath) -> Model:
    """Return a model by name, bundled or the user's own, or from a file: ours (any suffix) or the authors' (.pth).

    Raises InputError for an unknown name, and for a file that is not a model (see `checkpoint.load`).
    """
    from . import checkpoint

    path = path_of(name_or_path)
    if not path.exists():
        names = ", ".join(models()) or "none"
        message = _(
            "There is no model '{model}': it is neither a file nor a known model ({names}) or filter ({filters})."
        )
        raise InputError(message.format(model=name_or_path, names=names, filters=", ".join(FILTER_NAMES)))
    return checkpoint.Model(*checkpoint.load(path))


def cached_model(name_or_path: FilePath) -> Model:
    """Return the same as `load_model`, but read a file again only if it has changed.

    For inference only, because all callers share the model.
    """
    path = path_of(name_or_path)
    try:
        status = path.stat()
    except OSError:
        return load_model(name_or_path)  # raises the error
    return _cached_model(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _cached_model(path: Path, *version: int) -> Model:
    return load_model(path)


def fit_name(wanted: str, ending: str = "") -> str:
    """Return `wanted`, shortened and without characters that a model's name cannot have, followed by the ending."""
    name = " ".join(re.sub(r"[^\w .+-]+", " ", wanted).split()).lstrip(" .+-")
    name = name[: LONGEST - len(ending)].encode()[: BYTES - len(ending)].decode(errors="ignore").rstrip(" .")
    return (name or "model") + ending


def free_name(wanted: str, other_names: Iterable[str] = ()) -> str:
    """Return `wanted` as a valid model name that is free, with a number if necessary.

    A name is taken if a model or a filter has it, or if it is among `other_names`. Case is ignored, because some file
    systems do not distinguish it.
    """
    unavailable = {name.casefold() for name in (*models(), *FILTER_NAMES, *other_names)}
    number, name = 1, fit_name(wanted)
    while name.casefold() in unavailable:
        number += 1
        name = fit_name(wanted, f" {number}")
    return name


def own_path(name: str) -> Path:
    """Return the file of the user's model `name`, whether or not it exists.

    Raises InputError if the name is not valid, or is that of a bundled model or a filter.
    """
    if not re.fullmatch(r"\w[\w .+-]*", name) or name != name.strip(" ."):
        message = _("'{name}' is not a valid model name: use letters, digits, spaces and . + - _.")
        raise InputError(message.format(name=name))
    if len(name) > LONGEST or len(name.encode()) > BYTES:
        message = _("'{name}' is too long for a model's name, which has {longest} characters at most.")
        raise InputError(message.format(name=name, longest=LONGEST))
    if name in bundled_models():
        message = _("'{name}' is a model that comes with Speckle2Self; choose another name.")
        raise InputError(message.format(name=name))
    refuse_filter(name)
    return home() / "models" / f"{name}{SUFFIX}"


def worse_than_start(card: dict) -> str:
    """Return the figures in which a trained model is clearly worse than the one it started from, as text; "": none.

    If errors to a known truth were measured, only they count: all other figures can improve while images get worse.
    """
    start, end = card.get("figures_at_start") or {}, card.get("figures") or {}
    known = [name for name in TRUE_ERRORS if name in start and name in end]
    worse = [
        f"{('world' in end and FIGURES[name].label) or name} {start[name]:.4f} -> {end[name]:.4f}"
        for name in known or JUDGED
        if name in start and name in end and FIGURES[name].is_worse(start[name], end[name])
    ]
    return ", ".join(worse)


def improvement(card: dict) -> str:
    """Return in words how training changed the error on recordings like those trained on; "" if that was not
    measured."""
    start, end = card.get("figures_at_start") or {}, card.get("figures") or {}
    if card.get("start") == "random weights" or not start.get("rms") or "rms" not in end:
        return ""

    def changed(name: str) -> str:
        change = end[name] / start[name] - 1
        return f"{'fell' if change < 0 else 'rose'} by {abs(change):.1%}" if abs(change) >= 0.001 else "did not change"

    if not start.get("world") or "world" not in end:
        return f"The error on held-out simulated frames {changed('rms')}."
    if changed("rms") == changed("world") == "did not change":
        return "The error on held-out simulated frames of your recordings did not change."
    return (
        f"The error on held-out simulated frames of your recordings {changed('rms')}, and on other anatomies with your "
        f"speckle it {changed('world')}. The true change is usually better than the worse of the two."
    )


def few_steps(steps: int, whole: int, minutes: float | None) -> str:
    """Return a sentence if only a few of the preset's steps, `whole`, fitted into a training time; "" otherwise."""
    if minutes is None or steps >= whole // 10:
        return ""
    return (
        f"Only {steps} step{'s' * (steps != 1)} fitted into {minutes:g} minute{'s' * (minutes != 1)}, too few to judge "
        f"by (the preset has {whole}): allow more time, or use a faster device."
    )


def add(path: FilePath, name: str | None = None) -> str:
    """Copy a model file, ours or the authors' .pth, to the user's models; return its name there.

    Raises InputError for a file that is not a model, and for a name that is taken.
    """
    from . import checkpoint

    config, network, card = checkpoint.load(path)
    name = free_name(Path(path).stem) if name is None else name
    target = own_path(name)
    if target.exists():
        raise InputError(TAKEN.format(name=name))
    with _reporting_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(target, config, network, card)
    return name


def rename(name: str, to: str) -> None:
    """Give one of the user's models another name."""
    source, target = _path_of_own(name), own_path(to)
    if target.exists():
        raise InputError(TAKEN.format(name=to))
    with _reporting_errors(source):
        source.rename(target)


def delete(name: str) -> None:
    """Delete one of the user's models."""
    path = _path_of_own(name)
    with _reporting_errors(path):
        path.unlink()


def export(name: str, path: FilePath) -> None:
    """Copy a model, the user's or a bundled one, to a file."""
    source = models().get(name)
    if source is None:
        raise InputError(NO_MODEL.format(name=name))
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(_("The folder {folder} does not exist.").format(folder=target.parent))
    replace_file(target, source.read_bytes())


def card(name_or_path: FilePath) -> dict:
    """Return a model's card (description, recipe, figures) without loading it. Raises InputError."""
    try:
        with path_of(name_or_path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            metadata = json.loads(file.read(min(size, 10**7)))["__metadata__"]
        return {**json.loads(metadata["card"]), "config": json.loads(metadata["config"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(NO_MODEL.format(name=name_or_path)) from error


def estimates_uncertainty(name_or_path: FilePath) -> bool:
    """Return whether a model estimates the uncertainty of its output, without loading it; False for a filter."""
    try:
        config = card(name_or_path)["config"]
    except InputError:
        return False
    return isinstance(config, dict) and config.get("uncertainty") is True


def save_region(key: str, region: np.ndarray) -> None:
    """Keep a region (H, W) bool for recordings of the same kind (scanner, frame size)."""
    path, content = _region_path(key), io.BytesIO()
    np.save(content, np.asarray(region, bool), allow_pickle=False)
    with _reporting_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def last_region(key: str) -> np.ndarray | None:
    """Return the region (H, W) bool kept last for this kind of recording; None if there is none."""
    try:
        with _region_path(key).open("rb") as file:
            region = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return region if region.ndim == 2 and region.dtype == bool else None


def _region_path(key: str) -> Path:
    return home() / "regions" / (re.sub(r"[^\w.+-]", "_", key)[:100] + ".npy")


@contextmanager
def _reporting_errors(path: Path) -> Iterator[None]:
    """Raise an error of the file system as an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(CANNOT_WRITE.format(path=path, reason=error.strerror or error)) from error


def _path_of_own(name: str) -> Path:
    """Return the file of a user's model. Raises InputError if there is none."""
    path = own_models().get(name)
    if path is None:
        raise InputError(_("You have no model '{name}'; choose one of your own.").format(name=name))
    return path
