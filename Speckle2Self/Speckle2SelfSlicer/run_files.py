"""The files that a training run starts from: recordings, their regions and settings; no Slicer, Qt or torch here.

Recordings may have gigabytes, so they are written in steps, and the application handles events in between.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from Speckle2SelfLib.config import Job
from Speckle2SelfLib.system import InputError

from .words import _

PART = ".part"  # suffix of an incomplete folder
PIECE, BYTES = 0.02, 2**22  # seconds and bytes of writing recordings between two returns to the event loop


@contextmanager
def complete_folder(folder: Path):
    """Yield a hidden folder that is renamed to `folder`, replacing an empty one, when it is complete.

    Raises InputError if it cannot be written, and leaves nothing behind.
    """
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=PART, dir=folder.parent))
        part.chmod(0o755)
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise InputError(
            _("{folder} cannot be written: {reason}.").format(folder=folder, reason=error.strerror or error)
        ) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def complete(steps: Generator):
    """Do all steps of a generator; return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def job_in_steps(folder: Path, recordings, job: Job, held_out=(), regions=()) -> Generator[None, None, Job]:
    """Write the frames of a run, their regions and its `job.json`, with paths relative to the folder; return the job,
    whose own files are not moved. Each step writes some `BYTES`."""
    names = yield from write_recordings(folder, "recording", recordings)
    held_out = yield from write_recordings(folder, "held-out", held_out)
    job = replace(job, inputs=(*names, *job.inputs), held_out=held_out)
    job = replace(job, output="model.safetensors", preview="preview.png")
    if regions:
        job = replace(job, region=write_regions(folder, regions, (*names, *held_out)))
    (folder / "job.json").write_text(json.dumps(asdict(job), indent=1))
    return job


def all_equal(regions) -> bool:
    """Return whether all masks (H, W) bool are the same."""
    return all(np.array_equal(mask, regions[0]) for mask in regions)


def write_regions(folder: Path, regions, names) -> str:
    """Write masks (H, W) bool as one file if they are equal, else as a folder of files named like the recordings."""
    if all_equal(regions):
        np.save(folder / "region.npy", regions[0].astype(np.uint8))
        return "region.npy"
    (folder / "regions").mkdir()
    for mask, name in zip(regions, names, strict=True):
        np.save(folder / "regions" / name, mask.astype(np.uint8))
    return "regions"


def write_recordings(
    folder: Path, prefix: str, recordings: Iterable, first: int = 1
) -> Generator[None, None, tuple[str, ...]]:
    """Write frames in steps to anonymous files `<prefix>-<number>.npy`, in color if they have any, because colored
    pixels are excluded from the region; return the names. recordings: arrays, or objects with shape and dtype that
    yield frames. first: the number of the first one."""
    names, done = [], 0
    for number, frames in enumerate(recordings, first):
        shape, channels, color = tuple(frames.shape), None, False
        for frame in frames if len(shape) == 4 else ():
            color = bool((frame[..., 1:3] != frame[..., :1]).any())
            if color:
                break
            done += frame.nbytes
            if done >= BYTES:
                done = 0
                yield
        if len(shape) == 4:
            shape, channels = ((*shape[:3], 3), slice(3)) if color else (shape[:3], 0)
        names.append(f"{prefix}-{number}.npy")
        with (folder / names[-1]).open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(frames.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for frame in frames:
                file.write(np.ascontiguousarray(frame if channels is None else frame[..., channels]))
                done += frame.nbytes
                if done >= BYTES:
                    done = 0
                    yield
    return tuple(names)
