"""Despeckling in a child process: jobs and live streams for the panel; no Slicer, Qt, VTK or torch here.

One process holds the models. The panel calls `Worker.poll` from a timer; no thread runs here and nothing waits for the
process. Arrays are shared memory that is made and freed here alone. A process that crashes, hangs or talks nonsense
fails its job with one sentence, and the next job gets a fresh one.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Speckle2SelfLib.config import DespeckleOptions
from Speckle2SelfLib.system import InputError
from Speckle2SelfLib.worker_process import SLOTS, job_arrays, layout, stream_arrays, views

from .processes import GRACE, LONGEST, Child, kill_tree

ENDED = (
    "The despeckling process ended unexpectedly ({how}); nothing was changed. Apply again to start a fresh one.{last}"
)
NONSENSE = "The despeckling process gave an answer that cannot be understood and was ended; nothing was changed. Apply again to start a fresh one."  # noqa: E501 (one sentence for the user)


class _Child(Child):
    """A child that must not talk nonsense."""

    def answers(self):
        """The dicts that came since the last call; raises ValueError at the first line that is none."""
        for line in self._fresh(self.process.stdout):
            try:
                answer = json.loads(line)
            except RecursionError:
                answer = None
            if not isinstance(answer, dict):
                raise ValueError(f"not an answer: {line[:80]!r}")
            yield answer
        if len(self._rest[self.process.stdout]) > LONGEST:
            raise ValueError("an endless line")


class _Block:
    """Memory that a child attaches by `name` (path, inode); freed when the last array in it goes, or this process.

    No multiprocessing.shared_memory: its tracker would start a second process of `sys.executable`, which in Slicer is
    the application. On Linux the memory has no name in any folder, so that nothing stays whoever is killed.
    Raises InputError where there is not enough memory.
    """

    def __init__(self, size: int):
        self._hide = None
        try:
            if os.name == "nt":
                self.name = (f"Speckle2Self-{uuid.uuid4()}", 0)
                self.map = mmap.mmap(-1, size, tagname=self.name[0])
                return
            if sys.platform.startswith("linux"):
                handle = _memory_file(size)
                name = f"/proc/{os.getpid()}/fd/{handle}"
                self._hide = weakref.finalize(self, os.close, handle)
            else:
                handle, name = tempfile.mkstemp(prefix="Speckle2Self-")
                self._hide = weakref.finalize(self, _remove, handle, name)
            self.name = (name, os.fstat(handle).st_ino)
            os.ftruncate(handle, size)
            self.map = mmap.mmap(handle, size)
        except (OSError, OverflowError, ValueError) as error:
            self.hide()
            raise InputError(
                f"There is not enough memory for {size / 2**30:.1f} GB of frames; close other data."
            ) from error

    def hide(self) -> None:
        """No further process can attach."""
        if self._hide is not None:
            self._hide()


def _memory_file(size: int) -> int:
    """A file without a name, in memory where that has room."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("Speckle2Self")
    folder = Path("/dev/shm")
    room = os.statvfs(folder) if folder.is_dir() else None
    small = room is None or room.f_bavail * room.f_frsize < 1.1 * size
    with tempfile.TemporaryFile(dir=None if small else folder) as file:
        return os.dup(file.fileno())


def _remove(handle: int, name: str) -> None:
    os.close(handle)
    with suppress(OSError):
        os.unlink(name)


class Job:
    """One recording. state: "waiting", "running", "done", "cancelled", "failed" (message says why, for the user).

    input, output: (N, H, W[, C]) in shared memory; the first `done` of `total` frames of the output are despeckled.
    rate: frames per second; seconds_left: estimated, None as long as nothing is known. device, precision: what was
    chosen, such as "cuda", "bfloat16"; mapping: the grey values that the model takes for 0 and 1. `release` when the
    output has been read.
    """

    def __init__(self, number: int, shape, dtype: np.dtype):
        arrays = job_arrays(shape, dtype)
        self._block = _Block(layout(*arrays)[1])
        self.input, self.output, self._region = views(self._block.map, *arrays)
        self.number, self.state, self.message = number, "waiting", ""
        self.done, self.total, self.rate, self.seconds_left = 0, int(shape[0]), 0.0, None
        self.device, self.precision, self.mapping = "", "", None
        self._request, self._found, self._deadline = {}, False, None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "cancelled", "failed")

    @property
    def region(self) -> np.ndarray | None:
        """(H, W) bool: what is despeckled; None until that is known."""
        return self._region.copy() if self._found and self._region is not None else None

    def release_input(self) -> None:
        """Gives the input's memory back where the system can do so; it reads as zeros then."""
        if hasattr(mmap, "MADV_REMOVE"):
            whole = self.input.nbytes // mmap.PAGESIZE * mmap.PAGESIZE
            with suppress(OSError):
                self._block.map.madvise(mmap.MADV_REMOVE, 0, whole)

    def release(self) -> None:
        """Frees the memory, as soon as the caller has no view of it either."""
        self._hide()
        self._block = self.input = self.output = self._region = None

    def _take(self, event: str, answer: dict) -> None:
        """What the process said of this job; raises ValueError where that cannot be."""
        if event == "started":
            self.device, self.precision = _text(answer["device"]), _text(answer["precision"])
            low, high = answer["mapping"]
            self.mapping = _number(low), _number(high)
            self._found = True
            self._hide()
        elif event == "progress":
            self.done = _integer(answer["done"], self.done, self.total)
            self.rate = self.done / max(_seconds(answer["seconds"]), 1e-6)
            self.seconds_left = (self.total - self.done) / self.rate if self.rate else None
        elif event == "done":
            _integer(self.done, self.total, self.total)
            self._end("done")
        elif event in ("cancelled", "failed"):
            self._end(event, _text(answer["message"]) if event == "failed" else "")
        else:
            raise ValueError(f"unknown event {event!r}")

    def _end(self, state: str, message: str = "") -> None:
        self.state, self.message, self.seconds_left = state, message, None
        self._hide()

    def _hide(self) -> None:
        if self._block is not None:  # it may have been released while it was worked on
            self._block.hide()


class Frame(NamedTuple):
    """A despeckled live frame: the image, the number of its push, and the seconds from push to here."""

    image: np.ndarray
    number: int
    latency: float


class Stream:
    """A live image: the newest frame is despeckled, older ones that wait are dropped.

    state: "running", "stopped", "failed" (message says why). pushed, done, dropped: counts of frames. What the first
    frame that shows something tells of region, grey mapping and grain serves all that follow, until one shows far more
    or is far brighter, or has a new size, or another region is given.
    """

    def __init__(self, worker: Worker, shape, dtype, request: dict, region: np.ndarray | None):
        self._worker, self._request, self._given = weakref.proxy(worker), request, region
        self.state, self.message, self.device, self.precision = "running", "", "", ""
        self.pushed = self.done = self.dropped = 0
        self._finished = self._taken = 0
        self._latencies: deque[float] = deque(maxlen=500)
        self._allocate(tuple(shape), np.dtype(dtype))

    def _allocate(self, shape, dtype) -> None:
        arrays = stream_arrays(shape, dtype)
        self.shape, self.dtype, self.number = shape, dtype, self._worker._next_number()
        self._block = _Block(layout(*arrays)[1])
        self._header, self._inputs, self._outputs, self._region = views(self._block.map, *arrays)
        self._times: dict[int, float] = {}
        request = {**self._request, "shape": shape, "dtype": dtype.str, "memory": self._block.name}
        if self._given is not None:
            fits = self._given.shape == shape[:2]
            request["region"] = "given" if fits else "auto"
            if fits:
                self._region[...] = self._given
        self._opening = {"command": "stream", "stream": self.number, **request}
        self._woken = False

    def _open(self) -> None:
        """Tells a process of this stream."""
        self._woken = False
        self._worker._send({**self._opening, "last": self._finished})
        self._wake()

    def _wake(self) -> None:
        """Tells the process that there is a newer frame, unless it has not answered since it was told last."""
        if self.state == "running" and not self._woken and self._finished < self.pushed:
            self._woken = True
            self._worker._send({"command": "wake"})

    def push(self, frame: np.ndarray) -> int:
        """Hands a frame in, never waits; returns its number, from 1. A frame of another size or type starts anew."""
        frame = np.asarray(frame)
        if self.state != "running":
            return self.pushed
        if frame.shape != self.shape or frame.dtype != self.dtype:
            _check_frames((1, *frame.shape), frame.dtype)
            self._worker._send({"command": "stop", "stream": self.number})
            self._worker._forget(self)
            self.dropped += self.pushed - self._finished
            self._finished = self._taken = self.pushed
            self._allocate(frame.shape, frame.dtype)
            self._worker._add(self)
        self.pushed += 1
        slot = self.pushed % SLOTS
        self._header[1 + slot] = 0
        self._inputs[slot] = frame
        self._header[1 + slot] = self.pushed
        self._times[self.pushed] = time.perf_counter()
        self._header[0] = self.pushed
        self._worker.poll()  # after the header, and the process reads the header after it has answered: none is missed
        self._wake()
        return self.pushed

    def give(self, region: np.ndarray) -> None:
        """Another region (H, W) bool from the next frame on; grain and grey values are found in it anew."""
        self._given = region
        if self.state == "running" and region.shape == self.shape[:2]:  # else it waits for frames of its size
            self._region[...] = region
            self._header[-1] += 1
            self._opening["region"] = "given"

    def take(self) -> Frame | None:
        """The newest despeckled frame that was not taken yet, as a copy; else None."""
        for _ in range(2):
            self._worker.poll()
            number, slot = self._finished, self._finished % SLOTS
            if self._block is None or number == self._taken:
                return None
            image = self._outputs[slot].copy()
            if self._header[1 + SLOTS + slot] == number:
                self._taken = number
                return Frame(image, number, self._latency)
        return None

    def latency(self, percent: float = 50) -> float | None:
        """Seconds from a push until its result was here: this percentile of the last 500."""
        return float(np.percentile(self._latencies, percent)) if self._latencies else None

    @property
    def region(self) -> np.ndarray | None:
        """(H, W) bool: what is despeckled; None until that is known."""
        return self._region.copy() if self._finished and self._region is not None else None

    def look(self, strength: float, gamma: float) -> None:
        """Strength and gamma of the frames that follow. Raises InputError."""
        DespeckleOptions(strength=strength, gamma=gamma)  # its checks
        changed = {"strength": float(strength), "gamma": float(gamma)}
        self._request |= changed
        self._opening |= changed
        self._worker._send({"command": "look", "stream": self.number, **changed})

    def stop(self) -> None:
        """Ends the stream and frees its memory."""
        if self._block is not None:
            with suppress(ReferenceError):
                self._worker._send({"command": "stop", "stream": self.number})
                self._worker._forget(self)
        if self.state == "running":
            self.state = "stopped"
        self._release()

    def _release(self) -> None:
        if self._block is not None:
            self._block.hide()
        self._block = self._header = self._inputs = self._outputs = self._region = None

    def _take(self, event: str, answer: dict) -> None:
        """What the process said of this stream; raises ValueError where that cannot be."""
        if event == "open":
            self.device, self.precision = _text(answer["device"]), _text(answer["precision"])
        elif event == "frame":
            number = _integer(answer["number"], self._finished + 1, self.pushed)
            self.done += 1
            self.dropped += number - self._finished - 1
            self._finished, self._woken = number, False
            self._latency = time.perf_counter() - self._times[number]
            self._times = {n: t for n, t in self._times.items() if n > number}
            self._latencies.append(self._latency)
            self._wake()
        elif event == "failed":
            self._fail(_text(answer["message"]))
        else:
            raise ValueError(f"unknown event {event!r}")

    def _fail(self, message: str) -> None:
        if self.state == "running":
            self.state, self.message = "failed", message
        self._worker._forget(self)


class Worker:
    """The process that despeckles, its queue of jobs and its streams. Started when needed, or by `warm_up`.

    python: the interpreter; None: this one, or Slicer's. command: the whole command line instead, for tests.
    """

    def __init__(self, python: str | None = None, command: list[str] | None = None):
        self._command = command or [python, "-m", "Speckle2SelfLib.worker_process"]
        self._child: _Child | None = None
        self._running: Job | None = None
        self._waiting: deque[Job] = deque()
        self._streams: dict[int, Stream] = {}
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()
        self._numbers = 0
        self.devices: list[str] = []  # that the process can use, the best one first; as soon as it has told

    @property
    def pid(self) -> int | None:
        """The process's number; None where there is none."""
        return self._child.process.pid if self._child else None

    def warm_up(self) -> None:
        """Starts the process early: it loads its libraries while the user still chooses. Raises OSError."""
        if self._child is None:
            self._child = _Child(self._command[1:], self._command[0])
            for stream in self._streams.values():
                stream._open()

    def allocate(self, shape, dtype) -> Job:
        """A job whose `input` (N, H, W[, C]) the caller fills before `start`. Raises InputError."""
        dtype = np.dtype(dtype)
        _check_frames(tuple(shape), dtype)
        job = Job(self._next_number(), tuple(int(n) for n in shape), dtype)
        self._jobs.add(job)
        return job

    def start(self, job: Job, request: dict | None = None) -> Job:
        """Puts a filled job into the queue. request: see `despeckle`. Raises InputError."""
        request, region = _checked_request(request or {}, job.input.shape[1:3])
        if region is not None:
            job._region[...] = region
        shape, dtype = job.input.shape, job.input.dtype.str
        job._request = {"shape": shape, "dtype": dtype, "memory": job._block.name, **request}
        self._waiting.append(job)
        self.poll()
        return job

    def despeckle(self, frames: np.ndarray, **request) -> Job:
        """A job on a copy of `frames` (N, H, W[, C]).

        model: a model's name or file, or a filter's name. region: "auto", None (whole frames) or a mask (H, W).
        device: "auto", "cpu", "cuda", ...; strength: 0 to 1; gamma: 0.2 to 5. Raises InputError.
        """
        frames = np.asarray(frames)
        job = self.allocate(frames.shape, frames.dtype)
        np.copyto(job.input, frames)
        return self.start(job, request)

    def live(self, shape, dtype, request: dict | None = None) -> Stream:
        """A stream of frames (H, W[, C]); request: see `despeckle`. Raises InputError, OSError."""
        _check_frames((1, *shape), np.dtype(dtype))
        stream = Stream(self, shape, dtype, *_checked_request(request or {}, tuple(shape[:2])))
        self._add(stream)
        return stream

    def poll(self) -> None:
        """Takes what the process said, and starts the next job; returns at once. Call it from a timer."""
        child = self._child
        if child is not None:
            code = child.process.poll()  # asked before its answers are taken, so that none is left behind
            try:
                child.errors()
                for answer in child.answers():
                    self._take(answer)
            except (ValueError, KeyError, TypeError):
                self._end_child()
                self._fail(NONSENSE)
            else:
                job = self._running
                if code is not None:
                    how = _how_it_ended(code, child.errors())
                    self._end_child()
                    self._fail(how)
                elif job is not None and job._deadline is not None and time.monotonic() > job._deadline:
                    self._end_child()
                    self._running = None
                    job._end("cancelled")
        try:
            if self._child is None and self._streams:
                self.warm_up()
            while self._running is None and self._waiting:
                job = self._waiting.popleft()
                if job.state == "waiting":
                    self._running = job
                    self.warm_up()
                    job.state = "running"
                    self._send({"command": "despeckle", "job": job.number, **job._request})
        except OSError as error:
            self._fail(f"The despeckling process could not be started: {error.strerror or error}.")

    def cancel(self, job: Job) -> None:
        """Asks for a stop between two blocks of frames; a process that goes on for half a second is ended."""
        if job is self._running and job._deadline is None:
            job._deadline = time.monotonic() + GRACE
            self._send({"command": "cancel", "job": job.number})
        elif job.state == "waiting":
            job._end("cancelled")
            with suppress(ValueError):
                self._waiting.remove(job)

    def terminate(self) -> None:
        """Ends the process and all that it started, at once; its job and all that wait are cancelled."""
        self._end_child(wait=True)
        for job in (self._running, *self._waiting):
            if job is not None and not job.ended:
                job._end("cancelled")
        self._running = None
        self._waiting.clear()
        for stream in list(self._streams.values()):
            stream.stop()

    def close(self) -> None:
        """Ends the process and frees all memory of all jobs."""
        self.terminate()
        for job in list(self._jobs):
            job.release()

    def __del__(self):
        with suppress(Exception):
            self.close()

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _add(self, stream: Stream) -> None:
        if self._child is None:
            self.warm_up()
        self._streams[stream.number] = stream
        stream._open()

    def _forget(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)

    def _send(self, request: dict) -> None:
        if self._child is not None:
            self._child.send(json.dumps(request))

    def _take(self, answer: dict) -> None:
        event = answer["event"]
        if event == "ready":
            return
        if event == "devices":
            self.devices = [_text(name) for name in answer["devices"]]
            return
        if "stream" in answer:
            number = _integer(answer["stream"], 1, self._numbers)
            if number in self._streams:  # else it has been stopped
                self._streams[number]._take(event, answer)
            return
        job = self._running
        if job is None or answer["job"] != job.number:
            raise ValueError("an answer for no job")
        job._take(event, answer)
        if job.ended:
            self._running = None

    def _fail(self, message: str) -> None:
        """The running job, and every stream, end with a message."""
        job, self._running = self._running, None
        if job is not None:
            cancelled = job._deadline is not None
            job._end("cancelled" if cancelled else "failed", "" if cancelled else message)
        for stream in list(self._streams.values()):
            stream._fail(message)

    def _end_child(self, wait: bool = False) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if not wait:  # only the clearing away may take its time
            if os.name != "nt" and child.process.poll() is None:
                kill_tree(child.process)
            threading.Thread(target=child.close, daemon=True).start()
        else:
            child.close()


def _check_frames(shape: tuple, dtype: np.dtype) -> None:
    """Raises InputError for what cannot be frames (N, H, W[, C])."""
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise InputError(f"Frames of shape {shape} are not (N, H, W) or (N, H, W, 3 or 4).")
    if dtype.kind not in "uif":
        raise InputError(f"Frames of type {dtype} cannot be despeckled; give integers or floating point.")


def _checked_request(request: dict, size: tuple) -> tuple[dict, np.ndarray | None]:
    """A request as JSON types with all defaults, and the region where it is given as a mask; or InputError."""
    defaults = {"model": "default", "region": "auto", "device": "auto", "strength": 1.0, "gamma": 1.0}
    if unknown := set(request) - set(defaults):
        raise InputError(f"Unknown options of despeckling: {', '.join(sorted(unknown))}.")
    request = {**defaults, **request}
    if not isinstance(request["model"], str | os.PathLike):
        raise InputError("The despeckling process takes a model by its name or file, or a filter by its name.")
    mask = None
    if isinstance(request["region"], str | None):
        request["region"] = None if request["region"] == "none" else request["region"]
    else:
        mask = np.asarray(request["region"]) != 0
        request["region"] = "given"
        if mask.shape != tuple(size):
            raise InputError(f"A region of {mask.shape} does not fit frames of {tuple(size)} pixels.")
    request |= {"model": str(request["model"]), "device": str(request["device"])}
    request |= {name: float(request[name]) for name in ("strength", "gamma")}
    DespeckleOptions(strength=request["strength"], gamma=request["gamma"])  # its checks
    return request, mask


def _how_it_ended(code: int, errors: list[str]) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return ENDED.format(how=how, last=f" It said: {errors[-1]}" if errors and code > 0 else "")


def _integer(value, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r} is no number from {low} to {high}")
    return value


def _seconds(value) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} are no seconds")
    return float(value)


def _number(value) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _text(value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value[:500]
