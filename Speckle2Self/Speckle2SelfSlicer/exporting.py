"""Write training runs as folders that can be trained on other machines and clusters; no Slicer, Qt or torch here."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from Speckle2SelfLib import library
from Speckle2SelfLib.config import Job
from Speckle2SelfLib.system import InputError

from .processes import Child, is_crash, start_failure
from .run_files import PIECE, complete, complete_folder, job_in_steps, write_recordings
from .words import _, translate_sentence

# TORCH_DISABLE_SHARE_RDZV_TCP_STORE: each start gets its own store, through which the processes find each other.
# Otherwise torchrun keeps one store, and processes that it restarts after a kill look there for the dead ones, and
# wait.
SCRIPTS = {
    "run.sh": """#!/bin/sh
# Trains on this machine; needs the core:
# pip install git+https://github.com/Speckle2Self/SlicerSpeckle2Self
# DEVICES=4 ./run.sh uses four processes, each with its own GPU if there are GPUs.
# If a process is killed, all are restarted from the last checkpoint, up to three times. However it was stopped, the run
# resumes from there when called again. The result is model.safetensors.
set -e
cd "$(dirname "$0")"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "${PYTHON:-python3}" -m torch.distributed.run --standalone --local-addr localhost --max-restarts 3 \\
  --nproc-per-node "${DEVICES:-1}" -m Speckle2SelfLib train --job job.json --resume
""",
    "run-hosts.sh": """#!/bin/sh
# Trains on several machines that share this folder: call it on each, with the same HEAD (one of them) and HOSTS.
# HEAD=node1 HOSTS=2 DEVICES=4 ./run-hosts.sh
set -e
cd "$(dirname "$0")"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "${PYTHON:-python3}" -m torch.distributed.run --nnodes "${HOSTS:?}" --nproc-per-node "${DEVICES:-1}" \\
  --max-restarts 3 --rdzv-id speckle2self --rdzv-backend c10d --rdzv-endpoint "${HEAD:?}:${PORT:-29500}" \\
  -m Speckle2SelfLib train --job job.json --resume
""",
    "run.slurm": """#!/bin/sh
#SBATCH --job-name=speckle2self
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
# An example for SLURM: adapt the lines above to the cluster, then: sbatch run.slurm
export HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" HOSTS="$SLURM_NNODES" DEVICES=4
srun ./run-hosts.sh
""",
}
READ = "from Speckle2SelfSlicer.exporting import read_files; read_files()"  # a large file would block the panel


class Export:
    """A run that is written as a folder, in steps; see `export`. Raises InputError if it cannot begin.

    listener: called from `poll` with the folder, or with the error that ended it. python: the interpreter that reads
    files. ended: whether it is complete, or nothing of it is left.
    """

    def __init__(
        self, folder: Path, recordings, job: Job, held_out, listener: Callable, regions=(), python: str | None = None
    ):
        self.folder, self.ended, self._listener = folder, False, listener
        self._steps = export_in_steps(folder, recordings, job, held_out, regions, python)
        with suppress(StopIteration):
            next(self._steps)  # a small run is complete now

    def poll(self) -> bool:
        """Write more, for a moment; return whether it has ended, after notifying the listener."""
        if self.ended:
            return True
        end, result = time.perf_counter() + PIECE, self.folder
        try:
            while time.perf_counter() < end:
                next(self._steps)
            return False
        except StopIteration:
            pass
        except Exception as error:
            result = error
        self.ended = True
        self._listener(result)
        return True

    def close(self) -> None:
        """Remove a folder that is not complete; the listener is not called."""
        self._steps.close()
        self.ended = True


def export(folder: Path, recordings, job: Job, held_out=(), regions=(), python: str | None = None) -> Path:
    """Write a run as a folder with its frames and scripts that start it anywhere, see `SCRIPTS`; return the folder.

    The folder is created; an existing one must be empty. The initial model is copied as well, unless it is bundled.
    python: the interpreter that reads files. Raises InputError.
    """
    return complete(export_in_steps(folder, recordings, job, held_out, regions, python))


def export_in_steps(
    folder: Path, recordings, job: Job, held_out, regions, python: str | None
) -> Generator[None, None, Path]:
    """Do `export` in short steps; return the folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(_("{folder} is not empty; choose a new folder.").format(folder=folder))
    with complete_folder(folder) as part:
        if job.init and job.init not in library.bundled_models():
            shutil.copyfile(library.path_of(job.init), part / "start.safetensors")
            job = replace(job, init="start.safetensors")
        files = yield from _write_files(part, job.inputs, len(recordings) + 1, python)
        yield from job_in_steps(part, recordings, replace(job, inputs=files, device="auto"), held_out, regions)
        for name, text in SCRIPTS.items():
            (part / name).write_text(text, newline="\n")
            (part / name).chmod(0o755)
    return folder


def _write_files(folder: Path, paths, first: int, python: str | None) -> Generator[None, None, tuple[str, ...]]:
    """Write the frames of files and folders on disk as recordings of a run, in another process; return the names.

    Raises InputError if one of them cannot be read.
    """
    if not paths:
        return ()
    command = ["-c", READ, str(first), *map(os.path.abspath, paths)]
    try:
        child = Child(command, python, folder)
    except OSError as error:
        raise InputError(_("The files could not be read: {reason}.").format(reason=start_failure(error))) from error
    try:
        while child.poll() is None:
            time.sleep(PIECE / 4)
            yield
        for line in child.lines():
            if "recordings" in line:
                return tuple(line["recordings"])
        errors = child.errors()
        last = "".join(errors[-1:])
        if last.startswith("speckle2self: "):
            raise InputError(translate_sentence(last.removeprefix("speckle2self: ")))
        if is_crash(child.poll(), errors):
            last = _("the system stopped it, probably for lack of memory")
        raise InputError(_("The files could not be read: {reason}.").format(reason=last.rstrip(".")))
    finally:
        child.close()


def read_files() -> None:
    """Write the frames of files and folders to the current folder as recordings of a run; print their names.

    This is the program of a process. Its arguments are the number of the first recording, and the files.
    """
    from Speckle2SelfLib import files

    threading.Thread(target=_end_with_application, daemon=True).start()
    try:
        frames = (np.asarray(files.read(path).frames) for path in files.find(sys.argv[2:]))
        names = complete(write_recordings(Path(), "recording", frames, int(sys.argv[1])))
    except InputError as error:
        sys.exit(f"speckle2self: {error}")
    except OSError as error:
        sys.exit(f"speckle2self: {error.filename or 'file'}: {error.strerror or error}.")
    print(json.dumps({"recordings": names}))


def _end_with_application() -> None:
    """End this process when the application has ended, which closes the standard input."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
