"""Training runs as child processes: started, watched, stopped, resumed, one at a time; no Slicer, Qt or torch here.

A run lives in a folder of its own below the user's folder: `job.json`, the frames, the model so far, its state to go on
from, a preview, and what the process said. The process runs the command line's `train`, as a cluster would.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from Speckle2SelfLib import library
from Speckle2SelfLib.config import Job, from_dict, refuse_filter
from Speckle2SelfLib.system import InputError, locked, replace_file

from .processes import Child

# TORCH_DISABLE_SHARE_RDZV_TCP_STORE: each start gets a store of its own, in which the processes find each other. Else
# torchrun keeps one, and those that it starts anew after one was killed look there for the dead ones, and wait.
SCRIPTS = {
    "run.sh": """#!/bin/sh
# Trains on this machine; needs the core:
# pip install git+https://github.com/Speckle2Self/SlicerSpeckle2Self
# DEVICES=4 ./run.sh takes four processes, each with a GPU of its own where there are GPUs.
# A process that is killed, and the others, are started again up to three times, from the last checkpoint; stopped in
# whatever way, it goes on from there when called again. The result is model.safetensors.
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
# An example for SLURM: fit the lines above to the cluster, then: sbatch run.slurm
export HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" HOSTS="$SLURM_NNODES" DEVICES=4
srun ./run-hosts.sh
""",
}
PART, STALE = ".part", 3600  # of a folder that is not complete; seconds after which nobody is at work on it
GONE = "The training process ended unexpectedly (exit code {code}). Resume goes on from the last checkpoint.{last}"
KILLED = (-9, -11, 137, 139)  # exit codes: by the signals KILL and SEGV, also as a shell tells them
NO_MEMORY = (
    "The training process ended unexpectedly: the system stopped it, probably for lack of memory. Resume goes on from "
    "the last checkpoint."
)


class TrainingJob:
    """One run. `poll` it on the main thread, or `wait` for it.

    state: "waiting", "running", "stopped" (it can be resumed), "done", "failed" (message says why; it can be resumed,
    too). simulated: before the first step, how many anatomies are simulated, and of how many. settings: what the run
    trains, on what. reports: those with a step. message: the last one for the user. model: the name of the trained
    model among the user's models, once done. worse: in which figures it is worse than what it started from.
    """

    def __init__(self, name: str, folder: Path, job: Job, python: str | None = None):
        self.name, self.folder, self.job = name, Path(folder), job
        self.state, self.message, self.model, self.worse = "waiting", "", None, ""
        self.simulated: tuple[int, int] | None = None
        self.settings, self.reports, self._finishing = {}, [], False
        self._python, self._child = python, None
        self._last: np.ndarray | None = None  # the picture of a run that is done, whose files are gone
        self.trainer: Trainer | None = None

    def wait(self, seconds: float | None = None) -> bool:
        """Blocks until the run has ended; False if it has not after `seconds`."""
        return self.trainer.wait(self, seconds)

    @property
    def preview(self) -> Path:
        """A held-out frame before and after, side by side; replaced at each validation."""
        return self.folder / "preview.png"

    def picture(self) -> np.ndarray | None:
        """The pixels (H, 2 W) uint8 of `preview`, of a run that is done, too; None where there is none yet."""
        if self._last is not None:
            return self._last
        from imageio.v3 import imread

        with suppress(OSError, ValueError):
            picture = imread(self.preview)
            return picture if picture.ndim == 2 and picture.shape[1] % 2 == 0 else None

    @property
    def resumable(self) -> bool:
        """Whether it can go on, from its last checkpoint or, without any, from the beginning."""
        return self.state in ("stopped", "failed") and (self.folder / "job.json").exists()

    @property
    def stoppable(self) -> bool:
        """Whether `finish` keeps a model."""
        return self.state == "running" or (self.resumable and (self.folder / self.job.output).exists())

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("stopped", "done", "failed")

    def start(self) -> None:
        """Starts the process; goes on from the checkpoint if there is one. A run that ended unseen is done."""
        trained, state = self.folder / self.job.output, self.folder / f"{self.job.output}.state"
        if trained.exists() and not state.exists() and library.card(trained).get("finished") is True:
            self._end(0)
            return
        job = replace(self.job, resume=state.exists())
        replace_file(self.folder / "job.json", json.dumps(asdict(job), indent=1).encode())
        arguments = ["-m", "Speckle2SelfLib", "train", "--job", "job.json", "--listen"]
        self._child = Child(arguments, python=self._python, folder=self.folder)
        self.state, self.message, self.simulated, self._finishing = "running", "", None, False

    def poll(self) -> list[dict]:
        """What the process reported since the last call; returns at once."""
        if self._child is None:
            return []
        fresh = []
        ended = self._child.poll()  # asked before its lines are taken, so that none is left behind
        for line in self._child.lines():
            fresh.append(line)
            self._take(line)
        if ended is not None and self.state == "running":
            self._end(ended)
        return fresh

    def _take(self, line: dict) -> None:
        with suppress(OSError), (self.folder / "log.jsonl").open("a") as log:  # the process tells of a full disk
            log.write(json.dumps(line) + "\n")
        self.simulated = (line["simulated"], line["anatomies"]) if "anatomies" in line else None
        if "config" in line:
            self.settings = line
        elif "message" in line:
            self.message = str(line["message"])
        add_report(self.reports, line)

    def _end(self, code: int) -> None:
        trained = self.folder / self.job.output
        if code == 0 or (code == 130 and self._finishing and trained.exists()):
            try:
                self.model = library.add(trained, library.free_name(self.name))
                self.worse = library.worse_than_start(library.card(self.model))
                self.state, self._last = "done", self.picture()
                _remove(self.folder)
            except (InputError, OSError) as error:
                self.state, self.message = "failed", f"The trained model could not be kept: {error}"
        elif code == 130:
            self.state = "stopped"
        else:
            self.state = "failed"
            last = self._child.errors()[-1:]
            told = last and last[0].startswith("speckle2self: ")
            if told:
                self.message = last[0].removeprefix("speckle2self: ")
            elif code in KILLED:
                self.message = NO_MEMORY
            else:
                self.message = GONE.format(code=code, last="".join(f" It said: {line}" for line in last))
        if self._child is not None:
            self._child.close()
            self._child = None

    def check(self) -> None:
        """Raises InputError where another application trains this run."""
        if self._child is None and self.folder.exists() and _at_work(self.folder):
            raise InputError(f"The run '{self.name}' goes on in another application; pause it there first.")

    def stop(self) -> None:
        """Asks the process to save the run and end; it can be resumed."""
        if self.state == "waiting":
            self.state = "stopped"
        elif self._child is not None:
            self._child.send("stop")

    def finish(self) -> None:
        """Ends the run early: its best model so far is kept, where there is one, and it cannot be resumed then.

        Raises InputError where another application trains it.
        """
        self.check()
        self._finishing = True
        if self._child is not None:
            self.stop()
        elif self.state != "done":
            self._end(130)

    def cancel(self) -> None:
        """Ends the process and all that it started at once, and removes the run; models stay.

        Raises InputError where another application trains it.
        """
        if self.state == "done":  # its folder is gone; one of that name is another run's
            return
        self.check()
        if self._child is not None:
            self._child.close()
            self._child = None
        self.state, self.message = "stopped", "Cancelled."
        _remove(self.folder)

    def close(self) -> None:
        """Ends the process at once; the run can be resumed from its last checkpoint."""
        if self._child is not None:
            self._child.close()
            self._child = None
            self.state = "stopped"


class Trainer:
    """The runs of this application: one trains, the others wait for their turn."""

    def __init__(self, folder: Path | None = None, python: str | None = None):
        self.folder = Path(folder) if folder else library.home() / "runs"
        self._python = python
        self.jobs: list[TrainingJob] = []
        self._listeners: dict[TrainingJob, Callable] = {}
        self._estimates: list[Estimate] = []

    def add(
        self, name: str, recordings: list[np.ndarray], job: Job, held_out=(), listener=None, regions=()
    ) -> TrainingJob:
        """A run on recordings (N, H, W[, C]), which are kept as files without names until the run has ended.

        name: of the run, and of the model where it is free then; what a model's name cannot have is left out.
        job: its inputs, output and preview are set here. listener: called from `poll` with (job, report). regions: the
        pixels (H, W) bool to train on, of each recording and then of each one held out; none: as the job says.
        """
        name = library.fit_name(name)
        refuse_filter(name)
        folder = self.folder / name
        if (folder / "job.json").exists():
            if _at_work(folder):
                raise InputError(f"A run '{name}' goes on in another application; choose another name.")
            raise InputError(f"There is an unfinished run '{name}'; resume or remove it, or choose another name.")
        _remove(folder)
        with _whole(folder) as part:
            job = write_job(part, recordings, job, held_out, regions)
            (part / "name.txt").write_text(name)
        new = TrainingJob(name, folder, job, self._python)
        new.trainer = self
        self.jobs.append(new)
        if listener:
            self._listeners[new] = listener
        self.poll()
        return new

    def free_name(self, wanted: str) -> str:
        """`wanted` made fit for a run's name, with a number where a model or an unfinished run has that name."""
        return library.free_name(wanted, [path.parent.name for path in self.folder.glob("*/job.json")])

    def estimate(self, recordings, job: Job, held_out, listener, regions=()) -> Estimate:
        """Measures what a run would take; `listener` is called from `poll` with a dict or an InputError."""
        job = replace(job, estimate=True)
        self._estimates.append(Estimate(recordings, job, held_out, listener, regions, self._python))
        return self._estimates[-1]

    def unfinished(self) -> list[TrainingJob]:
        """Runs that an earlier session left behind, and none that another application trains; each is then among
        `jobs`, stopped. What an application that was killed left half written or half removed goes."""
        known = {job.folder for job in self.jobs}
        for part in self.folder.glob(f"*{PART}"):
            with suppress(OSError):
                if time.time() > part.stat().st_mtime + STALE:
                    shutil.rmtree(part)
        for path in sorted(self.folder.glob("*/job.json")):
            if path.parent in known or path.parent.name.endswith(PART) or _at_work(path.parent):
                continue
            try:
                job = from_dict(Job, json.loads(path.read_text()))
                name = (path.parent / "name.txt").read_text().strip()
                log = path.parent / "log.jsonl"
                reports = read_reports(log) if log.exists() else []  # the application may have ended before the first
            except (OSError, ValueError, RecursionError):
                continue
            job = replace(job, output="model.safetensors", preview="preview.png")  # wherever the file says
            left = TrainingJob(name, path.parent, job, self._python)
            left.trainer = self
            left.state, left.reports = "stopped", reports
            self.jobs.append(left)
        return [job for job in self.jobs if job.resumable]

    def resume(self, job: TrainingJob) -> None:
        """Puts a stopped or failed run back into the queue. Raises InputError where another application trains it."""
        if job.state in ("stopped", "failed") and job.folder.exists():
            job.check()
            job.state = "waiting"
            self.poll()

    def poll(self) -> None:
        """Takes what the processes reported, tells the listeners, and starts the next run; returns at once."""
        for job in list(self.jobs):
            for report in job.poll():
                if job in self._listeners:
                    self._listeners[job](job, report)
        self._estimates = [estimate for estimate in self._estimates if not estimate.poll()]
        if not any(job.state == "running" for job in self.jobs):
            waiting = next((job for job in self.jobs if job.state == "waiting"), None)
            if waiting is not None:
                try:
                    waiting.start()
                except (OSError, InputError) as error:
                    reason = getattr(error, "strerror", None) or str(error).rstrip(".")
                    waiting.state, waiting.message = "failed", f"Training could not be started: {reason}."

    def wait(self, job: TrainingJob, seconds: float | None = None) -> bool:
        """Polls until `job` has ended; False if it has not after `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        while not job.ended:
            if end is not None and time.monotonic() > end:
                return False
            self.poll()
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Ends all processes at once; unfinished runs can be resumed."""
        for running in (*self.jobs, *self._estimates):
            running.close()


class Estimate:
    """A short measured run in a process of its own, of which nothing is kept."""

    def __init__(self, recordings, job: Job, held_out, listener, regions=(), python=None):
        self._folder = tempfile.TemporaryDirectory(prefix="speckle2self-")
        self._listener = listener
        write_job(Path(self._folder.name), recordings, job, held_out, regions)
        self._child = Child(
            ["-m", "Speckle2SelfLib", "train", "--job", "job.json", "--listen"], python, self._folder.name
        )

    def poll(self) -> bool:
        """Whether it has ended; then the listener has been told."""
        if self._child.poll() is None:
            return False
        found = [line["estimate"] for line in self._child.lines() if "estimate" in line]
        message = "".join(self._child.errors()[-1:]).removeprefix("speckle2self: ")
        self.close()
        self._listener(found[0] if found else InputError(message or "The estimate ended unexpectedly."))
        return True

    def close(self) -> None:
        """Ends it at once."""
        self._child.close()
        self._folder.cleanup()


def export(folder: Path, recordings, job: Job, held_out=(), regions=()) -> Path:
    """A run as a folder with its frames and with scripts that start it anywhere; see `SCRIPTS`.

    The folder is made; one that exists must be empty. A model to start from is copied along, unless it is bundled.
    Raises InputError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; choose a new folder.")
    with _whole(folder) as part:
        if job.init and job.init not in library.bundled_models():
            shutil.copyfile(library.path_of(job.init), part / "start.safetensors")
            job = replace(job, init="start.safetensors")
        recordings = [*recordings, *_read_files(job.inputs)]
        write_job(part, recordings, replace(job, inputs=(), device="auto"), held_out, regions)
        for name, text in SCRIPTS.items():
            (part / name).write_text(text, newline="\n")
            (part / name).chmod(0o755)
    return folder


@contextmanager
def _whole(folder: Path):
    """A folder that gets its name when it is complete: a hidden one beside it until then; an empty one gives way.

    Raises InputError where it cannot be written; nothing is left then.
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
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Removes a run's folder; killed meanwhile, no half of it has the run's name."""
    gone = folder.with_name(f".{folder.name}.{time.monotonic_ns()}{PART}")
    with suppress(OSError):
        folder = folder.rename(gone)
    shutil.rmtree(folder, ignore_errors=True)


def _at_work(folder: Path) -> bool:
    """Whether a process trains the run in a folder, or nothing can be written there."""
    try:
        with locked(folder / "model.safetensors"):
            return False
    except InputError:
        return True


def write_job(folder: Path, recordings, job: Job, held_out=(), regions=()) -> Job:
    """The frames of a run, their regions and its `job.json`, with paths as seen from the folder; the job's own files
    stay in place."""
    names = write_recordings(folder, "recording", recordings)
    held_out = write_recordings(folder, "held-out", held_out)
    job = replace(job, inputs=(*names, *job.inputs), held_out=held_out)
    job = replace(job, output="model.safetensors", preview="preview.png")
    if regions:
        job = replace(job, region=write_regions(folder, regions, (*names, *held_out)))
    (folder / "job.json").write_text(json.dumps(asdict(job), indent=1))
    return job


def read_reports(path: Path) -> list[dict]:
    """The reports of steps in a run's log; lines that an end in the middle of writing left are passed over."""
    reports = []
    for text in path.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                add_report(reports, line)
    return reports


def add_report(reports: list[dict], line: dict) -> None:
    """Adds what a process said if it is the report of a step; those of steps that are done anew go."""
    start = line.get("from_step")
    if isinstance(start, int):
        reports[:] = [report for report in reports if start and report["step"] <= start]
    elif isinstance(line.get("step"), int):
        reports.append(line)


def _read_files(paths) -> list[np.ndarray]:
    """The frames of files and folders on disk."""
    from Speckle2SelfLib import files

    return [np.asarray(files.read(path).frames) for path in files.find(list(paths))] if paths else []


def count_files(folder, seconds: float = 0.3) -> tuple[int, bool]:
    """How many files below a folder can be trained on, and whether these are all: it counts for `seconds` at most."""
    from Speckle2SelfLib import files

    number, end = 0, time.monotonic() + seconds
    for inside, _folders, names in os.walk(folder):
        for name in names:
            number += not name.startswith(".") and files.is_readable(Path(inside, name))
            if time.monotonic() > end:
                return number, False
    return number, True


def alike(regions) -> bool:
    """Whether all masks (H, W) bool are the same."""
    return all(np.array_equal(mask, regions[0]) for mask in regions)


def write_regions(folder: Path, regions, names) -> str:
    """Masks (H, W) bool as one file where they are alike, else as a folder of files named as the recordings."""
    if alike(regions):
        np.save(folder / "region.npy", regions[0].astype(np.uint8))
        return "region.npy"
    (folder / "regions").mkdir()
    for mask, name in zip(regions, names, strict=True):
        np.save(folder / "regions" / name, mask.astype(np.uint8))
    return "regions"


def write_recordings(folder: Path, prefix: str, recordings) -> tuple[str, ...]:
    """Files `<prefix>-<number>.npy` of frames, in colour where they have any, as colours are no part of the region;
    nothing of where they come from."""
    names = []
    for number, frames in enumerate(recordings, 1):
        if frames.ndim == 4:
            grey = all((frame[..., 1:3] == frame[..., :1]).all() for frame in frames)
            frames = frames[..., 0] if grey else frames[..., :3]
        names.append(f"{prefix}-{number}.npy")
        np.save(folder / names[-1], frames)
    return tuple(names)
