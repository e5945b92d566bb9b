"""Despeckling in a child process: jobs and live streams for the panel; no Slicer, Qt, VTK or torch here.

One process holds the models. The panel calls `Worker.poll` from a timer; no thread runs here and nothing waits for the
process. Arrays are in shared memory that only this side allocates and frees. If a process crashes, hangs or sends
invalid answers, its job fails with one sentence, and the next job gets a fresh process.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
import time
import uuid
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Speckle2SelfLib import library, protocol
from Speckle2SelfLib.config import DespeckleOptions
from Speckle2SelfLib.system import InputError
from Speckle2SelfLib.worker_process import SLOTS, job_arrays, offsets_of, stream_arrays, views

from .processes import GRACE, LONGEST, Child, is_crash, start_failure
from .words import _, translate_sentence

ENDED = _(
    "The despeckling process ended unexpectedly ({how}); nothing was changed. Apply again to start a fresh one.{last}"
)
KILLED = _("it crashed, or the system stopped it, perhaps for lack of memory")
NONSENSE = _(
    "The despeckling process sent an invalid answer and was ended; nothing "
    "was changed. Apply again to start a fresh one."
)


class _Child(Child):
    """A child whose answers are messages of `protocol`."""

    def answers(self):
        """Yield the answers since the last call; raise InputError at the first line that is not an answer."""
        for line in self._new_lines(self.process.stdout):
            yield protocol.decode_answer(line)
        if len(self._rest[self.process.stdout]) > LONGEST:
            raise InputError(_("An answer's line is incomplete."))


class _Block:
    """Memory that a child attaches by `name` (path, inode); freed with its last array, or when this process ends.

    No multiprocessing.shared_memory: its tracker would start a second process of `sys.executable`, which in Slicer is
    the application. On Linux the memory has no name in any folder, so nothing is left behind if either process
    is killed.
    Raises InputError if there is not enough memory.
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
                _("There is not enough memory for {gigabytes:.1f} GB of frames; close other data.").format(
                    gigabytes=size / 2**30
                )
            ) from error

    def hide(self) -> None:
        """Prevent further processes from attaching."""
        if self._hide is not None:
            self._hide()


def _memory_file(size: int) -> int:
    """Return a file without a name, in memory if there is space."""
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


class DespeckleJob:
    """One recording. state: "waiting", "running", "done", "cancelled", "failed" (message says why, for the user).

    input, output: (N, H, W[, C]) in shared memory; the first `done` of `total` frames of the output are despeckled.
    uncertainty: (N, H, W) float32 in shared memory, of the output; None unless requested.
    rate: frames per second; seconds_left: estimated, None while unknown. device, precision: the chosen ones, such as
    "cuda", "bfloat16"; mapping: the grey values that the model sees as 0 and 1. Call `release` when the output has been
    read.
    """

    def __init__(self, number: int, shape, dtype: np.dtype, uncertainty: bool = False):
        arrays = job_arrays(shape, dtype, uncertainty)
        self._block = _Block(offsets_of(*arrays)[1])
        self.input, self.output, self._region, *maps = views(self._block.map, *arrays)
        self.uncertainty = maps[0] if maps else None
        self.number, self.state, self.message = number, "waiting", ""
        self.done, self.total, self.rate, self.seconds_left = 0, int(shape[0]), 0.0, None
        self.device, self.precision, self.mapping = "", "", None
        self._request: protocol.Despeckle | None = None
        self._region_known, self._deadline = False, None

    @property
    def ended(self) -> bool:
        """Return whether the job has ended."""
        return self.state in ("done", "cancelled", "failed")

    @property
    def region(self) -> np.ndarray | None:
        """Return the region (H, W) bool that is despeckled; None until it is known."""
        return self._region.copy() if self._region_known and self._region is not None else None

    def release_input(self) -> None:
        """Free the input's memory if the system can; it then reads as zeros."""
        if hasattr(mmap, "MADV_REMOVE"):
            whole = self.input.nbytes // mmap.PAGESIZE * mmap.PAGESIZE
            with suppress(OSError):
                self._block.map.madvise(mmap.MADV_REMOVE, 0, whole)

    def release(self) -> None:
        """Free the memory, once the caller has no view of it either."""
        self._hide()
        self._block = self.input = self.output = self._region = self.uncertainty = None

    def _handle(self, answer) -> None:
        """Handle an answer about this job; raise ValueError if it is impossible."""
        if isinstance(answer, protocol.Started):
            self.device, self.precision, self.mapping = answer.device, answer.precision, answer.mapping
            self._region_known = True
            self._hide()
        elif isinstance(answer, protocol.Progress):
            self.done = _check_range(answer.done, self.done, self.total)
            self.rate = self.done / max(answer.seconds, 1e-6)
            self.seconds_left = (self.total - self.done) / self.rate if self.rate else None
        elif isinstance(answer, protocol.Done):
            _check_range(self.done, self.total, self.total)
            self._end("done")
        elif isinstance(answer, protocol.Cancelled):
            self._end("cancelled")
        elif isinstance(answer, protocol.Failed):
            self._end("failed", translate_sentence(answer.message))
        else:
            raise ValueError(f"a job cannot answer {answer!r:.100}")

    def _end(self, state: str, message: str = "") -> None:
        self.state, self.message, self.seconds_left = state, message, None
        self._hide()

    def _hide(self) -> None:
        if self._block is not None:  # it may have been released during the work
            self._block.hide()


class Frame(NamedTuple):
    """A despeckled live frame: the image, the number of its push, the seconds from push to here, and its uncertainty
    (H, W) float32 as a share of the grey range, where that was asked for."""

    image: np.ndarray
    number: int
    latency: float
    uncertainty: np.ndarray | None = None


class Stream:
    """A live image: the newest frame is despeckled, and older ones that wait are dropped.

    state: "running", "stopped", "failed" (message says why). push_count, result_count, drop_count: numbers of frames.
    Region, grey mapping and grain are found in the first frame that shows something, and again when a frame shows far
    more, is far brighter or has a new size, or when another region is given.
    """

    def __init__(
        self, worker: Worker, shape, dtype, options: DespeckleOptions, region: np.ndarray | None,
        uncertainty: bool = False,
    ):  # fmt: skip
        self._worker, self._options, self._mask = weakref.proxy(worker), asdict(options), region
        self._has_uncertainty = uncertainty
        self.state, self.message, self.device, self.precision = "running", "", "", ""
        self.push_count = self.result_count = self.drop_count = 0
        self._last_done = self._last_returned = 0
        self._latencies: deque[float] = deque(maxlen=500)
        self._allocate(tuple(shape), np.dtype(dtype))

    def _allocate(self, shape, dtype) -> None:
        arrays = stream_arrays(shape, dtype, self._has_uncertainty)
        self.shape, self.dtype, self.number = shape, dtype, self._worker._next_number()
        self._block = _Block(offsets_of(*arrays)[1])
        self._header, self._inputs, self._outputs, self._region, *self._maps = views(self._block.map, *arrays)
        self._times: dict[int, float] = {}
        if self._mask is not None:
            fits = self._mask.shape == shape[:2]
            self._options["region"] = "given" if fits else "auto"
            if fits:
                self._region[...] = self._mask
        self._wake_pending = False

    def _open(self) -> None:
        """Open the stream in the process."""
        self._wake_pending = False
        block, inode = self._block.name
        self._worker._send(protocol.OpenStream(
            self.number, self.shape, self.dtype.str, block, inode, self._options, self._last_done,
            self._has_uncertainty,
        ))  # fmt: skip
        self._wake()

    def _wake(self) -> None:
        """Notify the process of a newer frame, unless the last notification is unanswered."""
        if self.state == "running" and not self._wake_pending and self._last_done < self.push_count:
            self._wake_pending = True
            self._worker._send(protocol.Wake())

    def push(self, frame: np.ndarray) -> int:
        """Submit a frame without waiting; return its number, from 1. Another size or type restarts the stream."""
        frame = np.asarray(frame)
        if self.state != "running":
            return self.push_count
        if frame.shape != self.shape or frame.dtype != self.dtype:
            _check_frames((1, *frame.shape), frame.dtype)
            self._worker._send(protocol.Stop(self.number))
            self._worker._forget(self)
            self.drop_count += self.push_count - self._last_done
            self._last_done = self._last_returned = self.push_count
            self._allocate(frame.shape, frame.dtype)
            self._worker._add(self)
        self.push_count += 1
        slot = self.push_count % SLOTS
        self._header[1 + slot] = 0
        self._inputs[slot] = frame
        self._header[1 + slot] = self.push_count
        self._times[self.push_count] = time.perf_counter()
        self._header[0] = self.push_count
        self._worker.poll()  # after the header; the process reads the header after it has answered, so none is missed
        self._wake()
        return self.push_count

    def set_region(self, region: np.ndarray) -> None:
        """Use another region (H, W) bool from the next frame on; grain and grey values are measured again."""
        self._mask = region
        if self.state == "running" and region.shape == self.shape[:2]:  # else wait for frames of its size
            self._region[...] = region
            self._header[-1] += 1
            self._options["region"] = "given"

    def take(self) -> Frame | None:
        """Return a copy of the newest despeckled frame that was not returned before; else None."""
        for _attempt in range(2):
            self._worker.poll()
            number, slot = self._last_done, self._last_done % SLOTS
            if self._block is None or number == self._last_returned:
                return None
            image = self._outputs[slot].copy()
            uncertainty = self._maps[0][slot].copy() if self._maps else None
            if self._header[1 + SLOTS + slot] == number:
                self._last_returned = number
                return Frame(image, number, self._latency, uncertainty)
        return None

    def latency(self, percent: float = 50) -> float | None:
        """Return a percentile of the seconds from a push to its result, over the last 500."""
        return float(np.percentile(self._latencies, percent)) if self._latencies else None

    @property
    def region(self) -> np.ndarray | None:
        """Return the region (H, W) bool that is despeckled; None until it is known."""
        return self._region.copy() if self._last_done and self._region is not None else None

    def set_look(self, strength: float, gamma: float, cautious: float = 0.0) -> None:
        """Set strength, gamma and caution of the next frames. Raises InputError."""
        look = DespeckleOptions(strength=float(strength), gamma=float(gamma), cautious=float(cautious))
        self._options |= {"strength": look.strength, "gamma": look.gamma, "cautious": look.cautious}
        self._worker._send(protocol.Look(self.number, look.strength, look.gamma, look.cautious))

    def stop(self) -> None:
        """End the stream and free its memory."""
        if self._block is not None:
            with suppress(ReferenceError):
                self._worker._send(protocol.Stop(self.number))
                self._worker._forget(self)
        if self.state == "running":
            self.state = "stopped"
        self._release()

    def _release(self) -> None:
        if self._block is not None:
            self._block.hide()
        self._block = self._header = self._inputs = self._outputs = self._region = None
        self._maps = []

    def _handle(self, answer) -> None:
        """Handle an answer about this stream; raise ValueError if it is impossible."""
        if isinstance(answer, protocol.Opened):
            self.device, self.precision = answer.device, answer.precision
        elif isinstance(answer, protocol.Frame):
            number = _check_range(answer.number, self._last_done + 1, self.push_count)
            self.result_count += 1
            self.drop_count += number - self._last_done - 1
            self._last_done, self._wake_pending = number, False
            self._latency = time.perf_counter() - self._times[number]
            self._times = {n: t for n, t in self._times.items() if n > number}
            self._latencies.append(self._latency)
            self._wake()
        elif isinstance(answer, protocol.Failed):
            self._fail(translate_sentence(answer.message))
        else:
            raise ValueError(f"a stream cannot answer {answer!r:.100}")

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
        self._running: DespeckleJob | None = None
        self._waiting: deque[DespeckleJob] = deque()
        self._streams: dict[int, Stream] = {}
        self._jobs: weakref.WeakSet[DespeckleJob] = weakref.WeakSet()
        self._numbers = 0
        self.devices: list[str] = []  # usable by the process, the best one first; empty until it reports them

    @property
    def pid(self) -> int | None:
        """Return the process's number; None if there is no process."""
        return self._child.process.pid if self._child else None

    def warm_up(self) -> None:
        """Start the process early: it loads its libraries while the user still chooses. Raises OSError."""
        if self._child is None:
            self._child = _Child(self._command[1:], self._command[0])
            for stream in self._streams.values():
                stream._open()

    def allocate(self, shape, dtype, uncertainty: bool = False) -> DespeckleJob:
        """Return a job whose `input` (N, H, W[, C]) the caller fills before `start`; uncertainty: whether to return
        that of the output. Raises InputError."""
        dtype = np.dtype(dtype)
        _check_frames(tuple(shape), dtype)
        job = DespeckleJob(self._next_number(), tuple(int(n) for n in shape), dtype, uncertainty)
        self._jobs.add(job)
        return job

    def start(self, job: DespeckleJob, request: dict | None = None) -> DespeckleJob:
        """Put a filled job into the queue. request: see `despeckle`. Raises InputError."""
        options, region = checked_options(request or {}, job.input.shape[1:3])
        if region is not None:
            job._region[...] = region
        shape, dtype = job.input.shape, job.input.dtype.str
        job._request = protocol.Despeckle(
            job.number, shape, dtype, *job._block.name, asdict(options), job.uncertainty is not None
        )
        self._waiting.append(job)
        self.poll()
        return job

    def despeckle(self, frames: np.ndarray, **request) -> DespeckleJob:
        """Queue a job on a copy of `frames` (N, H, W[, C]); return it.

        request: fields of `config.DespeckleOptions`; region may also be a mask (H, W). Raises InputError.
        """
        frames = np.asarray(frames)
        job = self.allocate(frames.shape, frames.dtype)
        np.copyto(job.input, frames)
        return self.start(job, request)

    def live(self, shape, dtype, request: dict | None = None, uncertainty: bool = False) -> Stream:
        """Return a stream of frames (H, W[, C]); request: see `despeckle`; uncertainty: whether to return that of the
        output. Raises InputError, OSError."""
        _check_frames((1, *shape), np.dtype(dtype))
        stream = Stream(self, shape, dtype, *checked_options(request or {}, tuple(shape[:2])), uncertainty)
        self._add(stream)
        return stream

    def poll(self) -> None:
        """Handle the process's answers, and start the next job; return at once. Call it from a timer."""
        child = self._child
        if child is not None:
            code = child.poll()  # before its answers are read, so that none is missed
            try:
                child.errors()
                for answer in child.answers():
                    self._handle(answer)
            except (ValueError, KeyError):
                self._end_child()
                self._fail(NONSENSE)
            else:
                job = self._running
                if code is not None:
                    how = _exit_message(code, child.errors())
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
                    self._send(job._request)
        except OSError as error:
            self._fail(_("The despeckling process could not be started: {reason}.").format(reason=start_failure(error)))

    def cancel(self, job: DespeckleJob) -> None:
        """Request a stop between two blocks of frames; end a process that does not stop within half a second."""
        if job is self._running and job._deadline is None:
            job._deadline = time.monotonic() + GRACE
            self._send(protocol.Cancel(job.number))
        elif job.state == "waiting":
            job._end("cancelled")
            with suppress(ValueError):
                self._waiting.remove(job)

    def terminate(self) -> None:
        """End the process and its descendants at once; its job and all queued ones are canceled."""
        self._end_child(wait=True)
        for job in (self._running, *self._waiting):
            if job is not None and not job.ended:
                job._end("cancelled")
        self._running = None
        self._waiting.clear()
        for stream in list(self._streams.values()):
            stream.stop()

    def close(self) -> None:
        """End the process and free all memory of all jobs."""
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

    def _send(self, request) -> None:
        if self._child is not None:
            self._child.send(json.dumps(protocol.encode(request)))

    def _handle(self, answer) -> None:
        if isinstance(answer, protocol.Ready):
            return
        if isinstance(answer, protocol.Devices):
            self.devices = list(answer.devices)
            return
        number = getattr(answer, "stream", None)
        if number is not None:
            if _check_range(number, 1, self._numbers) in self._streams:  # else it has been stopped
                self._streams[number]._handle(answer)
            return
        job = self._running
        if job is None or answer.job != job.number:
            raise ValueError("an answer for no job")
        job._handle(answer)
        if job.ended:
            self._running = None

    def _fail(self, message: str) -> None:
        """End the running job and all streams with a message."""
        job, self._running = self._running, None
        if job is not None:
            cancelled = job._deadline is not None
            job._end("cancelled" if cancelled else "failed", "" if cancelled else message)
        for stream in list(self._streams.values()):
            stream._fail(message)

    def _end_child(self, wait: bool = False) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close(wait)


def _check_frames(shape: tuple, dtype: np.dtype) -> None:
    """Raise InputError for a shape or type that frames (N, H, W[, C]) cannot have."""
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise InputError(_("Frames of shape {shape} are not (N, H, W) or (N, H, W, 3 or 4).").format(shape=shape))
    if dtype.kind not in "uif":
        raise InputError(
            _("Frames of type {dtype} cannot be despeckled; use integers or floating point.").format(dtype=dtype)
        )


def checked_options(options: dict, size: tuple) -> tuple[DespeckleOptions, np.ndarray | None]:
    """Return options of despeckling, and the region if it is a mask, which must fit frames of `size` (H, W).

    A region of None is "none". Raises InputError.
    """
    options = dict(options)
    known = [each.name for each in fields(DespeckleOptions)]
    if unknown := sorted(set(options) - set(known)):
        words = _("Unknown options of despeckling: {names}; choose from {known}.")
        raise InputError(words.format(names=", ".join(unknown), known=", ".join(known)))
    if not isinstance(options.get("model", ""), str | os.PathLike):
        raise InputError(_("Name a model by its name or file, or a filter by its name."))
    if (own := library.own_models().get(str(options.get("model")))) is not None:
        options["model"] = own  # the file, because the process may have started with another home
    mask, region = None, options.get("region", "auto")
    if region is None:
        options["region"] = "none"
    elif not isinstance(region, str):
        mask, options["region"] = np.asarray(region) != 0, "given"
        if mask.shape != tuple(size):
            raise InputError(
                _("A region of {shape} does not fit frames of {size} pixels.").format(
                    shape=mask.shape, size=tuple(size)
                )
            )
    for name, value in options.items():
        kind = type(DespeckleOptions.__dataclass_fields__[name].default)
        try:
            options[name] = kind(value)
        except (TypeError, ValueError) as error:
            raise InputError(_("{name} cannot be {value!r:.100}.").format(name=name, value=value)) from error
    return DespeckleOptions(**options), mask


def _exit_message(code: int, errors: list[str]) -> str:
    if code < 0:
        return ENDED.format(how=_("signal {number}").format(number=-code), last="")
    if is_crash(code, errors):
        return ENDED.format(how=KILLED, last="")
    return ENDED.format(
        how=_("exit code {code}").format(code=code),
        last=_(" It said: {line}").format(line=errors[-1]) if errors and code else "",
    )


def _check_range(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueError(f"{value} is not a number from {low} to {high}")
    return value
