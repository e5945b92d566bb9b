"""The models at hand: those that come with Speckle2Self, and the user's own in one folder."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .config import FILTER_NAMES, refuse_filter
from .system import InputError, replace_file

BUNDLED = Path(__file__).resolve().parent.parent / "Resources" / "Models"
SUFFIX = ".safetensors"
LONGEST, BYTES = 80, 220  # of a model's name: characters, and bytes; file systems take 255 with what is put around it


def home() -> Path:
    """The user's folder for models and training runs: `.speckle2self` in the home folder, or $SPECKLE2SELF_HOME."""
    return Path(os.environ.get("SPECKLE2SELF_HOME") or Path.home() / ".speckle2self")


def bundled_models() -> dict[str, Path]:
    """Name -> file of the models that come with Speckle2Self, `default` first."""
    found = {path.stem: path for path in sorted(BUNDLED.glob(f"*{SUFFIX}"))}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "default", name))}


def own_models() -> dict[str, Path]:
    """Name -> file of the models that the user trained or imported."""
    return {path.stem: path for path in sorted((home() / "models").glob(f"*{SUFFIX}"))}


def models() -> dict[str, Path]:
    """All of them: the bundled ones, then the user's; of the same name, the bundled one."""
    return bundled_models() | {name: path for name, path in own_models().items() if name not in bundled_models()}


def fit_name(wanted: str, ending: str = "") -> str:
    """`wanted`, cut and without what a model's name cannot have, and the ending."""
    name = " ".join(re.sub(r"[^\w .+-]+", " ", wanted).split()).lstrip(" .+-")
    name = name[: LONGEST - len(ending)].encode()[: BYTES - len(ending)].decode(errors="ignore").rstrip(" .")
    return (name or "model") + ending


def free_name(wanted: str, taken=()) -> str:
    """`wanted` made fit for a model's name, with a number where there is one of that name, or a filter, or it is among
    `taken`; not every file system tells small letters from capitals."""
    taken = {name.casefold() for name in (*models(), *FILTER_NAMES, *taken)}
    number, name = 1, fit_name(wanted)
    while name.casefold() in taken:
        number += 1
        name = fit_name(wanted, f" {number}")
    return name


def own_path(name: str) -> Path:
    """The file of the user's model `name`, there or not. Raises InputError for a name that is no plain name, or is one
    of a bundled model or a filter."""
    if not re.fullmatch(r"\w[\w .+-]*", name) or name != name.strip(" ."):
        raise InputError(f"'{name}' is no name for a model: use letters, digits, spaces and . + - _.")
    if len(name) > LONGEST or len(name.encode()) > BYTES:
        raise InputError(f"'{name}' is too long for a model's name, which has {LONGEST} characters at most.")
    if name in bundled_models():
        raise InputError(f"'{name}' is a model that comes with Speckle2Self; choose another name.")
    refuse_filter(name)
    return home() / "models" / f"{name}{SUFFIX}"


def worse_than_start(card: dict) -> str:
    """In which figures a trained model is clearly worse than the one that it started from; empty: in none."""
    start, end = card.get("figures_at_start") or {}, card.get("figures") or {}
    limits = {"homogeneity": -0.005, "structure": -0.005, "holes": 0.001, "rms": 0.002}
    worse = []
    for name, limit in limits.items():
        if name in start and name in end and (end[name] - start[name]) / limit > 1:
            worse.append(f"{name} {start[name]:.4f} -> {end[name]:.4f}")
    return ", ".join(worse)


def add(path, name: str | None = None) -> str:
    """Copies a model file, ours or the authors' .pth, among the user's models; returns its name there.

    Raises InputError for a file that is no model, and for a name that is taken.
    """
    from . import checkpoint

    config, network, card = checkpoint.load(path)
    name = free_name(Path(path).stem) if name is None else name
    target = own_path(name)
    if target.exists():
        raise InputError(f"There is a model '{name}' already; choose another name.")
    with _told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(target, config, network, card)
    return name


def rename(name: str, to: str) -> None:
    """Gives one of the user's models another name."""
    source, target = _existing(name), own_path(to)
    if target.exists():
        raise InputError(f"There is a model '{to}' already; choose another name.")
    with _told(source):
        source.rename(target)


def delete(name: str) -> None:
    """Removes one of the user's models for good."""
    path = _existing(name)
    with _told(path):
        path.unlink()


def export(name: str, path) -> None:
    """Copies a model, of the user's or bundled, to a file."""
    source = models().get(name)
    if source is None:
        raise InputError(f"There is no model '{name}'.")
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write to.")
    replace_file(path, source.read_bytes())


def path_of(name_or_path) -> Path:
    """The file of a model that is named, bundled or the user's own; of another name, the file of that path."""
    return models().get(str(name_or_path), Path(name_or_path))


def card(name_or_path) -> dict:
    """What is known of a model: description, recipe, figures; read without loading it. Raises InputError."""
    try:
        with path_of(name_or_path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            metadata = json.loads(file.read(min(size, 10**7)))["__metadata__"]
        return {**json.loads(metadata["card"]), "config": json.loads(metadata["config"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"There is no model '{name_or_path}'.") from error


def remember_region(key: str, region: np.ndarray) -> None:
    """Keep a region (H, W) bool for recordings of the same kind (scanner, frame size)."""
    path, content = _region_path(key), io.BytesIO()
    np.save(content, np.asarray(region, bool), allow_pickle=False)
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def recall_region(key: str) -> np.ndarray | None:
    """Return the region (H, W) bool that was kept last for this kind of recording; None if there is none."""
    try:
        with _region_path(key).open("rb") as file:
            region = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return region if region.ndim == 2 and region.dtype == bool else None


def _region_path(key: str) -> Path:
    return home() / "regions" / (re.sub(r"[^\w.+-]", "_", key)[:100] + ".npy")


@contextmanager
def _told(path: Path):
    """An error of the file system as an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def _existing(name: str) -> Path:
    path = own_models().get(name)
    if path is None:
        raise InputError(f"There is no model '{name}' of yours.")
    return path
