"""Training runs as child processes: started, watched, stopped, resumed, one at a time; no Slicer, Qt or torch here.

Each run has a folder in the user's folder: `job.json`, the frames, the model so far, its state for resuming, a preview,
and the log. The process runs the command line's `train`, as a cluster would.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from Speckle2SelfLib import library, protocol
from Speckle2SelfLib.config import Job, from_dict, refuse_filter
from Speckle2SelfLib.system import InputError, file_lock, replace_file

from .exporting import Export
from .processes import Child, is_crash, start_failure, wait_for_closed
from .run_files import PART, PIECE, complete_folder, job_in_steps
from .words import _, translate_sentence

STALE = 3600  # seconds after which an incomplete folder counts as abandoned
ENDED = _(
    "The training process ended unexpectedly (exit code {code}). Resume continues from the last checkpoint.{last}"
)
NO_MEMORY = _(
    "The training process ended unexpectedly: the system stopped it, probably for lack of "
    "memory. Resume continues from the last checkpoint."
)
PATIENCE = 0.05  # seconds to wait for files to be removed
BUSY = _("The run '{name}' is active in another application; pause it there first.")


class TrainingJob:
    """One run. `poll` it on the main thread, or `wait` for it.

    state: "waiting", "running", "stopped" (can be resumed), "done", "failed" (with a message; can also be resumed).
    simulated: before the first step, how many anatomies are simulated, and of how many. settings: the run's settings
    and data. reports: those with a step. message: the last one for the user. model: the name of the trained model among
    the user's models, once done. worse: the figures in which it is worse than the model it started from.
    """

    def __init__(self, name: str, folder: Path, job: Job, python: str | None = None):
        self.name, self.folder, self.job = name, Path(folder), job
        self.state, self.message, self.model, self.worse = "waiting", "", None, ""
        self.simulated: tuple[int, int] | None = None
        self.settings, self.reports, self._stop_requested = {}, [], False
        self._python, self._child = python, None
        self._picture: bytes | None = None  # preview of a finished run, whose files are removed
        self.preparation: Generator[None, None, Job] | None = None  # the remaining writing of its recordings
        self.trainer: Trainer | None = None
        self.nodes: list = []  # recordings of the scene, where the preview is placed

    def wait(self, seconds: float | None = None) -> bool:
        """Block until the run has ended; return False if it has not after `seconds`."""
        return self.trainer.wait(self, seconds)

    @property
    def preview(self) -> Path:
        """Return a held-out frame before and after, side by side; replaced at each validation."""
        return self.folder / "preview.png"

    def picture(self) -> bytes | None:
        """Return the content of `preview`, also of a run that is done; None if there is none yet."""
        if self._picture is None:
            with suppress(OSError):
                return self.preview.read_bytes()
        return self._picture

    @property
    def resumable(self) -> bool:
        """Return whether it can be resumed, from its last checkpoint or, without any, from the beginning."""
        return self.state in ("stopped", "failed") and (self.folder / "job.json").exists()

    @property
    def stoppable(self) -> bool:
        """Return whether `stop` keeps a model."""
        return self.state == "running" or (self.resumable and (self.folder / self.job.output).exists())

    @property
    def ended(self) -> bool:
        """Return whether the run has ended."""
        return self.state in ("stopped", "done", "failed")

    def start(self) -> None:
        """Start the process, from the checkpoint if there is one. A run that ended unnoticed becomes done."""
        trained, state = self.folder / self.job.output, self.folder / f"{self.job.output}.state"
        if trained.exists() and not state.exists() and library.card(trained).get("finished") is True:
            self._end(0)
            return
        job = replace(self.job, resume=state.exists())
        replace_file(self.folder / "job.json", json.dumps(asdict(job), indent=1).encode())
        arguments = ["-m", "Speckle2SelfLib", "train", "--job", "job.json", "--listen"]
        self._child = Child(arguments, python=self._python, folder=self.folder)
        self.state, self.message, self.simulated, self._stop_requested = "running", "", None, False

    def prepare(self) -> None:
        """Write more of its recordings for a moment; the run can start once `preparation` is None."""
        end = time.perf_counter() + PIECE
        try:
            while self.preparation is not None and time.perf_counter() < end:
                next(self.preparation)
        except StopIteration as done:
            self.preparation, self.message, self.job = None, "", done.value
        except InputError as error:
            self.preparation, self.state, self.message = None, "failed", translate_sentence(str(error))

    def discard(self) -> None:
        """Remove recordings that are not completely written."""
        if self.preparation is not None:
            self.preparation.close()
            self.preparation = None

    def poll(self) -> list[dict]:
        """Return the reports since the last call, without waiting."""
        if self._child is None:
            return []
        fresh = []
        ended = self._child.poll()  # before its lines are read, so that none is missed
        for line in self._child.lines():
            fresh.append(line)
            self._read_line(line)
        if ended is not None and self.state == "running":
            self._end(ended)
        return fresh

    def _read_line(self, values: dict) -> None:
        with suppress(OSError), (self.folder / "log.jsonl").open("a") as log:  # the process reports a full disk
            log.write(json.dumps(values) + "\n")
        with suppress(InputError):  # a library may print JSON as well
            line = protocol.training_line(values)
            self.simulated = (line.simulated, line.anatomies) if line.anatomies is not None else None
            if line.from_step is not None:
                self.settings = values
            elif line.message is not None:
                self.message = translate_sentence(line.message)
            add_report(self.reports, line)

    def _end(self, code: int) -> None:
        trained = self.folder / self.job.output
        if code == 0 or (code == 130 and self._stop_requested and trained.exists()):
            try:
                self.model, self._picture = keep_model(trained, library.free_name(self.name)), self.picture()
                self.worse = library.worse_than_start(library.card(self.model))
                self.state = "done"
                _remove(self.folder)
            except (InputError, OSError) as error:
                self.state, self.message = (
                    "failed",
                    _("The trained model could not be kept: {error}").format(error=error),
                )
        elif code == 130:
            self.state = "stopped"
        else:
            self.state = "failed"
            errors = self._child.errors()
            last = [line for line in errors if line.startswith("speckle2self: ")][-1:] or errors[-1:]
            if last and last[0].startswith("speckle2self: "):
                self.message = translate_sentence(last[0].removeprefix("speckle2self: "))
            elif is_crash(code, errors):
                self.message = NO_MEMORY
            else:
                self.message = ENDED.format(
                    code=code, last="".join(_(" It said: {line}").format(line=line) for line in last)
                )
        self._end_process(wait=False)

    def _end_process(self, wait: bool) -> None:
        if self._child is not None:
            self._child.close(wait)
            self._child = None

    def check(self) -> None:
        """Raise InputError if another application trains this run."""
        if self._child is None and self.folder.exists() and _is_active(self.folder):
            raise InputError(BUSY.format(name=self.name))

    def pause(self) -> None:
        """Request that the process save the run and end; it can be resumed."""
        if self.state == "waiting":
            self.state = "stopped"
        elif self._child is not None:
            self._child.send("stop")

    def resume(self) -> None:
        """Put a paused or failed run back into the queue. Raises InputError if another application trains it."""
        self.trainer.resume(self)

    def stop(self) -> None:
        """End the run early and keep its best model so far; if there is one, the run cannot be resumed.

        Raises InputError if another application trains it.
        """
        self.check()
        self._stop_requested = True
        if self._child is not None:
            self.pause()
        elif self.state != "done":
            self._end(130)

    def remove(self) -> None:
        """Cancel the run, and remove it from the list. Raises InputError if another application trains it."""
        self.cancel()
        if self.trainer is not None and self in self.trainer.jobs:
            self.trainer.jobs.remove(self)

    def cancel(self) -> None:
        """End the process and its descendants at once, and remove the run's files; models are kept.

        Raises InputError if another application trains it.
        """
        if self.state == "done":  # the run's folder was removed; a folder of that name belongs to another run
            return
        self.check()
        self.discard()
        self._end_process(wait=False)
        self.state, self.message = "stopped", _("Canceled.")
        _remove(self.folder)

    def close(self) -> None:
        """End the process at once; the run can be resumed from its last checkpoint if its recordings were written."""
        self.discard()
        if self._child is not None:
            self._end_process(wait=True)
            self.state = "stopped"


class Trainer:
    """The runs of this application: one trains, the others are queued."""

    def __init__(self, folder: Path | None = None, python: str | None = None):
        self.folder = Path(folder) if folder else library.home() / "runs"
        self._python = python
        self.jobs: list[TrainingJob] = []
        self._listeners: dict[TrainingJob, Callable] = {}
        self._tasks: list[Estimate | Export] = []

    def add(
        self, name: str, recordings: list[np.ndarray], job: Job, held_out=(), listener=None, regions=()
    ) -> TrainingJob:
        """Queue a run on recordings (N, H, W[, C]), which are kept as files without names until it has ended; return
        it.

        name: of the run, and of the model if it is still free then; characters that are not allowed are left out.
        job: its inputs, output and preview are set here. listener: called from `poll` with (job, report). regions: the
        pixels (H, W) bool to train on, for each recording and then for each one held out; none: the job's region.
        """
        name = library.fit_name(name)
        refuse_filter(name)
        folder = self.folder / name
        preparing = any(each.folder == folder and each.preparation is not None for each in self.jobs)
        if preparing or (folder / "job.json").exists():
            if not preparing and _is_active(folder):
                raise InputError(
                    _("A run '{name}' is active in another application; choose another name.").format(name=name)
                )
            raise InputError(
                _("There is an unfinished run '{name}'; resume or remove it, or choose another name.").format(name=name)
            )
        _remove(folder)
        new = TrainingJob(name, folder, replace(job, output="model.safetensors", preview="preview.png"), self._python)
        new.trainer, new.message = self, _("Its recordings are being written.")
        new.preparation = _complete_run(folder, name, recordings, job, held_out, regions)
        try:
            next(new.preparation)  # small runs are complete now; a folder that cannot be written is reported at once
        except StopIteration as done:
            new.preparation, new.message, new.job = None, "", done.value
        self.jobs.append(new)
        if listener:
            self._listeners[new] = listener
        self.poll()
        return new

    def free_name(self, wanted: str) -> str:
        """Return `wanted` as a valid run name, with a number if a model or an unfinished run has that name."""
        runs = [path.parent.name for path in self.folder.glob("*/job.json")]
        return library.free_name(wanted, [*runs, *(job.name for job in self.jobs if job.preparation is not None)])

    def estimate(self, recordings, job: Job, held_out, listener, regions=()) -> Estimate:
        """Measure the time and memory of a run; `listener` is called from `poll` with a dict or an InputError."""
        job = replace(job, estimate=True)
        self._tasks.append(Estimate(recordings, job, held_out, listener, regions, self._python))
        return self._tasks[-1]

    def export(self, folder: Path, recordings, job: Job, held_out, listener, regions=()) -> Export:
        """Write a run as a folder, in steps; `listener` is called from `poll` with the folder or the error.

        Raises InputError if it cannot begin.
        """
        self._tasks.append(Export(folder, recordings, job, held_out, listener, regions, self._python))
        return self._tasks[-1]

    def unfinished_runs(self) -> list[TrainingJob]:
        """Return the runs of earlier sessions that no other application trains; each is then among `jobs`, stopped.
        Incomplete folders of killed applications are removed."""
        folders = {job.folder for job in self.jobs}
        for part in self.folder.glob(f"*{PART}"):
            with suppress(OSError):
                if time.time() > part.stat().st_mtime + STALE:
                    shutil.rmtree(part)
        for path in sorted(self.folder.glob("*/job.json")):
            if path.parent in folders or path.parent.name.endswith(PART) or _is_active(path.parent):
                continue
            try:
                job = from_dict(Job, json.loads(path.read_text()))
                name = (path.parent / "name.txt").read_text().strip()
                log = path.parent / "log.jsonl"
                reports = read_reports(log) if log.exists() else []  # the application may have ended before the first
            except (OSError, ValueError, RecursionError):
                continue
            job = replace(job, output="model.safetensors", preview="preview.png")  # whatever the file contains
            training_job = TrainingJob(name, path.parent, job, self._python)
            training_job.trainer = self
            training_job.state, training_job.reports = "stopped", reports
            self.jobs.append(training_job)
        return [job for job in self.jobs if job.resumable]

    def resume(self, job: TrainingJob) -> None:
        """Put a stopped or failed run back into the queue. Raises InputError if another application trains it."""
        if job.state in ("stopped", "failed") and (job.folder.exists() or job.preparation is not None):
            job.check()
            job.state = "waiting"
            self.poll()

    def poll(self) -> None:
        """Collect reports, notify the listeners, and start the next run; return at once."""
        for job in list(self.jobs):
            job.prepare()
            for report in job.poll():
                if job in self._listeners:
                    self._listeners[job](job, report)
        self._tasks = [task for task in self._tasks if not task.poll()]
        if not any(job.state == "running" for job in self.jobs):
            waiting = next((job for job in self.jobs if job.state == "waiting"), None)
            if waiting is not None and waiting.preparation is None:
                try:
                    waiting.start()
                except (OSError, InputError) as error:
                    reason = start_failure(error) if isinstance(error, OSError) else str(error).rstrip(".")
                    waiting.state, waiting.message = (
                        "failed",
                        _("Training could not be started: {reason}.").format(reason=reason),
                    )

    def wait(self, job: TrainingJob, seconds: float | None = None) -> bool:
        """Poll until `job` has ended; return False if it has not after `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        while not job.ended:
            if end is not None and time.monotonic() > end:
                return False
            self.poll()
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """End all processes at once; unfinished runs can be resumed."""
        for running in (*self.jobs, *self._tasks):
            running.close()


class Estimate:
    """A short measured run in its own process, without results."""

    def __init__(self, recordings, job: Job, held_out, listener, regions=(), python=None):
        self._folder = tempfile.TemporaryDirectory(prefix="speckle2self-")
        self._listener, self._python, self._child = listener, python, None
        self._preparation = job_in_steps(Path(self._folder.name), recordings, job, held_out, regions)
        self._prepare(0)

    def _prepare(self, seconds: float = PIECE) -> None:
        end = time.perf_counter() + seconds
        try:
            next(self._preparation)
            while time.perf_counter() < end:
                next(self._preparation)
        except StopIteration:
            command = ["-m", "Speckle2SelfLib", "train", "--job", "job.json", "--listen"]
            self._child = Child(command, self._python, self._folder.name)

    def poll(self) -> bool:
        """Return whether it has ended, after notifying the listener."""
        try:
            if self._child is None:
                self._prepare()
            if self._child is None or self._child.poll() is None:
                return False
        except (InputError, OSError) as error:
            self.close()
            self._listener(error if isinstance(error, InputError) else InputError(start_failure(error)))
            return True
        found = None
        for values in self._child.lines():
            with suppress(InputError):
                found = found or protocol.training_line(values).estimate
        message = translate_sentence("".join(self._child.errors()[-1:]).removeprefix("speckle2self: "))
        self.close()
        self._listener(found or InputError(message or _("The estimate ended unexpectedly.")))
        return True

    def close(self) -> None:
        """End the process at once."""
        self._preparation.close()
        if self._child is not None:
            self._child.close(wait=False)
        self._folder.cleanup()


def _complete_run(folder: Path, name: str, recordings, job: Job, held_out, regions) -> Generator[None, None, Job]:
    """Yield the folder of a run, in steps; returns the job as it is written. Raises InputError."""
    with complete_folder(folder) as part:
        job = yield from job_in_steps(part, recordings, job, held_out, regions)
        (part / "name.txt").write_text(name)
    return job


def keep_model(trained: Path, name: str) -> str:
    """Copy a model written by our own process to the user's models; return its name there.

    Unlike `library.add`, which reads any file, this does not need torch, whose import takes a second. InputError.
    """
    library.card(trained)  # checks it
    target = library.own_path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, trained.read_bytes())
    return name


def _remove(folder: Path) -> None:
    """Remove a run's folder; if the application is killed during this, no incomplete folder has the run's name.

    Removing gigabytes takes seconds: the rest is done in the background.
    """
    gone = folder.with_name(f".{folder.name}.{time.monotonic_ns()}{PART}")
    with suppress(OSError):
        folder = folder.rename(gone)
    removal = threading.Thread(target=shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True})
    removal.start()
    removal.join(PATIENCE)


def _is_active(folder: Path) -> bool:
    """Return whether a process trains the run in a folder, or the folder cannot be written."""
    wait_for_closed()  # it may be one of our ending processes
    try:
        with file_lock(folder / "model.safetensors"):
            return False
    except InputError:
        return True


def read_reports(path: Path) -> list[dict]:
    """Return the reports of steps in a run's log; skip lines truncated by a crash."""
    reports = []
    for text in path.read_bytes().splitlines():
        with suppress(InputError):
            add_report(reports, protocol.training_line(protocol.parse(text)))
    return reports


def add_report(reports: list[dict], line: protocol.TrainingLine) -> None:
    """Add a line if it is the report of a step; drop earlier reports of steps that are repeated after a resume."""
    if line.from_step is not None:
        reports[:] = [report for report in reports if line.from_step and report["step"] <= line.from_step]
    elif line.step is not None:
        reports.append(line.values)


def count_files(folder, seconds: float = 0.3) -> tuple[int, bool]:
    """Return how many files in a folder can be trained on, and whether the count is complete after `seconds`."""
    from Speckle2SelfLib import files

    number, end = 0, time.monotonic() + seconds
    for inside, _folders, names in os.walk(folder):
        for name in names:
            number += not name.startswith(".") and files.is_readable(Path(inside, name))
            if time.monotonic() > end:
                return number, False
    return number, True
