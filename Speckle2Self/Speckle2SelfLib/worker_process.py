"""The child process that holds the models. It exchanges JSON lines for jobs and live streams, and arrays in shared
memory.

`python -m Speckle2SelfLib.worker_process` reads one request per line from standard input and ends when that closes. The
parent allocates and frees all shared memory; it sends requests and receives answers, the messages of `protocol`.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from . import protocol
from .config import DespeckleOptions, from_dict
from .system import keep_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .calibration import Calibration
    from .checkpoint import Model
    from .despeckling import Filter

SLOTS = 3  # frames of a stream in shared memory, on either side
HEADER = 2 * SLOTS + 2  # int64: the newest pushed number, the number in each slot (inputs, outputs), count of regions
TORN = 5.0  # seconds until a frame that is being written must be complete
SEARCHED = 4  # interval of live frames that are searched for graphics
EVERY = 8  # px between the rows and columns of a stream's frame that are checked for changes
GROWN = 0.3  # fraction of region pixels; if this many more light up, find region and grain again
OVER = 0.02  # fraction of region pixels; if this many are brighter than the model's 1, find the mapping again
DType = str | np.dtype
Array = tuple[tuple[int, ...], DType]  # shape and type


def offsets_of(*arrays: Array) -> tuple[list[int], int]:
    """Return the offsets of arrays of these (shape, dtype) in one block, and its size; bytes, aligned to 64."""
    starts, end = [], 0
    for shape, dtype in arrays:
        starts.append(end)
        size = np.dtype(dtype).itemsize
        for length in shape:
            size *= int(length)
        end += -(-size // 64) * 64
    return starts, max(end, 64)


def views(block: mmap.mmap, *arrays: Array) -> list[np.ndarray]:
    """Return the arrays of `offsets_of` in a block; they keep the block alive."""
    starts, _ = offsets_of(*arrays)
    return [
        np.ndarray(shape, dtype, buffer=block, offset=start)
        for start, (shape, dtype) in zip(starts, arrays, strict=True)
    ]


def job_arrays(shape: Sequence[int], dtype: DType, uncertainty: bool = False) -> list[Array]:
    """Return the arrays in a job's block: input, output, region (detected by the child, or given), and the output's
    uncertainty if requested."""
    arrays: list[Array] = [(tuple(shape), dtype), (tuple(shape), dtype), (tuple(shape[1:3]), "bool")]
    return [*arrays, (tuple(shape[:3]), "float32")] if uncertainty else arrays


def stream_arrays(shape: Sequence[int], dtype: DType, uncertainty: bool = False) -> list[Array]:
    """Return the arrays in a stream's block: header, input slots, output slots, region and, if requested, the
    uncertainty of the output slots as a fraction of the grey range."""
    frames = (SLOTS, *shape)
    arrays: list[Array] = [((HEADER,), "int64"), (frames, dtype), (frames, dtype), (tuple(shape[:2]), "bool")]
    return [*arrays, (frames[:3], "float32")] if uncertainty else arrays


def attach(name: str, inode: int, size: int) -> mmap.mmap:
    """Return the parent's block: a file (in memory if the system supports that), on Windows a named block."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size, tagname=name)
    handle = os.open(name, os.O_RDWR)
    try:
        if os.fstat(handle).st_ino != inode:  # the parent has released the block and reused its name
            raise FileNotFoundError(name)
        return mmap.mmap(handle, size)
    finally:
        os.close(handle)


class Stream:
    """A live image. The calibration of the first usable frame is used for all later frames, so that nothing flickers,
    until another region is given, or a frame shows far more or is far brighter, as when the probe touches the skin."""

    def __init__(self, server: Server, request: protocol.OpenStream):
        self.number, self.request = request.stream, request
        arrays = stream_arrays(request.shape, request.dtype, request.uncertainty)
        block = attach(request.block, request.inode, offsets_of(*arrays)[1])
        self.header, self.inputs, self.outputs, self.region, *maps = views(block, *arrays)
        self.uncertainties = maps[0] if maps else None
        self.last, self.region_number = request.last, int(self.header[-1])
        self.calibration: Calibration | None = None  # from the first usable frame
        options = from_dict(DespeckleOptions, request.options)
        self.engine, self.options, self.runs_on = server.engine(options)
        self.region_option = options.region
        self.drawn: np.ndarray | None = None  # graphics on the frame number `searched`
        self.searched = 0

    @property
    def has_new_frame(self) -> bool:
        """Return whether there is a frame newer than the last one."""
        return int(self.header[0]) > self.last

    def newest(self) -> tuple[int, np.ndarray]:
        """Return the newest frame's number and a copy; try again if the parent overwrites the slot in between."""
        end = time.monotonic() + TORN
        while time.monotonic() < end:
            number = int(self.header[0])
            slot = number % SLOTS
            frame = self.inputs[slot].copy()
            if int(self.header[1 + slot]) == number:
                return number, frame
            time.sleep(2e-4)
        raise RuntimeError("no whole frame came")

    def step(self) -> tuple[int, float]:
        """Despeckle the newest frame; return its number and the seconds that it took."""
        self.last, frame = self.newest()
        started = time.perf_counter()
        slot = self.last % SLOTS
        self.header[1 + SLOTS + slot] = 0
        self.outputs[slot] = self._despeckle(frame, slot)
        self.header[1 + SLOTS + slot] = self.last
        return self.last, time.perf_counter() - started

    def _despeckle(self, frame: np.ndarray, slot: int) -> np.ndarray:
        from .despeckling import despeckle

        uncertainty = self.uncertainties[slot : slot + 1] if self.uncertainties is not None else None
        if uncertainty is not None:
            uncertainty[...] = 0
        colours = frame[..., :3] if frame.ndim == 3 else frame
        colours = colours[np.isfinite(colours)] if frame.dtype.kind == "f" else colours
        bounds = (colours.min(), colours.max()) if colours.size else (0, 0)
        if bounds[0] == bounds[1]:
            return frame  # black, as before the probe touches the skin: nothing to do
        if self.header[-1] != self.region_number:
            self.region_number, self.calibration = int(self.header[-1]), None
            self.region_option = "given"
        if self.calibration is None or self._outgrows(frame):
            calibration = self._find(frame[None])
            if not calibration.region.any():
                return frame
            self.calibration, self.drawn = calibration, None
            self.lit_at_first = self._lit_shares(frame)[0]
        calibration = replace(self.calibration, bounds=bounds, graphics=self._graphics(frame, bounds))
        given = {"calibration": calibration, "uncertainty": uncertainty, **self.options}
        result = despeckle(frame[None], self.engine, **given)[0]
        if uncertainty is not None:
            uncertainty /= max(calibration.mapping[1] - calibration.mapping[0], 1e-9)
        return result

    def _graphics(self, frame: np.ndarray, bounds: tuple[float, float]) -> np.ndarray | bool:
        """Return `Calibration.graphics`. On a processor, only every few frames are searched for graphics, since a
        search takes about half as long as the rest."""
        import torch

        from .detector import find_graphics
        from .grey import luminance

        assert self.calibration is not None
        if not self.calibration.graphics or self.runs_on["device"] != "cpu":
            return self.calibration.graphics
        if self.drawn is None or self.last >= self.searched + SEARCHED:
            self.drawn = find_graphics(torch.from_numpy(luminance(frame[None])), bounds)[0]
            self.searched = self.last
        return self.drawn

    def _lit_shares(self, frame: np.ndarray) -> tuple[float, float]:
        """Return two fractions of the region's pixels: the number of lit pixels outside it (anywhere, if it was given
        and not detected), and of those inside that are brighter than the model's 1."""
        from .grey import luminance

        assert self.calibration is not None
        region, (low, high) = self.calibration.region, self.calibration.mapping
        values, inside = luminance(frame[None, ::EVERY, ::EVERY])[0], region[::EVERY, ::EVERY]
        detected = inside & (self.region_option == "auto")
        lit, over = values[~detected] > low + (high - low) / 10, values[inside] > high
        return lit.sum() / max(1, inside.sum()), over.sum() / max(1, inside.sum())

    def _outgrows(self, frame: np.ndarray) -> bool:
        lit, over = self._lit_shares(frame)
        return lit > self.lit_at_first + GROWN or over > OVER

    def _find(self, frames: np.ndarray) -> Calibration:
        from .calibration import calibrate, find_region, is_screen
        from .despeckling import needs_grain

        if self.region_option == "given":
            region = self.region.copy()
        else:
            region = find_region(frames, None if self.region_option == "none" else self.region_option)
            if region.any() or self.calibration is None:  # else the previous calibration remains in use
                self.region[...] = region
        calibration = calibrate(frames, region, with_grain=needs_grain(self.engine))
        return replace(calibration, graphics=self.region_option == "auto" and is_screen(frames))


class Server:
    """Serve requests, the dicts in `lines`, and answer through `say`, which is called with one message of `protocol`.
    One job at a time; streams continue between its blocks."""

    def __init__(self, lines: queue.SimpleQueue, say: Callable[[protocol.Answer], None]):
        self.lines, self.say = lines, say
        self.streams: dict[int, Stream] = {}
        self.jobs: list[protocol.Despeckle] = []
        self.cancelled: set[int] = set()

    def run(self) -> None:
        """Serve until standard input closes. Raises InputError for a line that is not a request."""
        while True:
            self.listen(wait=not self.jobs and not any(stream.has_new_frame for stream in self.streams.values()))
            self.serve_streams()
            if self.jobs:
                self.despeckle(self.jobs.pop(0))

    def listen(self, wait: bool) -> None:
        """Handle the requests that have arrived; `wait`: wait for at least one."""
        with suppress(queue.Empty):
            while True:
                request = protocol.decode_request(self.lines.get(block=wait))
                wait = False
                if isinstance(request, protocol.Despeckle):
                    self.jobs.append(request)
                elif isinstance(request, protocol.Cancel):
                    self.cancelled.add(request.job)
                elif isinstance(request, protocol.OpenStream):
                    self.attempt(request, partial(self.open, request))
                elif isinstance(request, protocol.Stop):
                    self.streams.pop(request.stream, None)
                elif isinstance(request, protocol.Look) and request.stream in self.streams:
                    changed = {name: getattr(request, name) for name in ("strength", "gamma", "cautious")}
                    self.streams[request.stream].options |= changed

    def engine(self, options: DespeckleOptions) -> tuple[Model | Filter, dict[str, Any], dict[str, str]]:
        """Return the filter or `Model`, the remaining options of `despeckle`, and the names of the device and precision
        it runs on."""
        from .despeckling import OPTIONS
        from .devices import choose_device
        from .filters import FILTERS
        from .inference import precision_of
        from .library import cached_model

        frame_options = {name: getattr(options, name) for name in OPTIONS}
        if options.model in FILTERS:
            return FILTERS[options.model], frame_options, {"device": "cpu", "precision": "float32"}
        device = choose_device(options.device)
        model = cached_model(options.model)
        precision = precision_of(model, device)
        frame_options |= {"device": str(device), "precision": precision}
        return model, frame_options, {"device": str(device), "precision": str(precision).removeprefix("torch.")}

    def open(self, request: protocol.OpenStream) -> None:
        """Start a stream."""
        from .despeckling import check_uncertainty

        stream = Stream(self, request)
        if request.uncertainty or stream.options["cautious"]:
            check_uncertainty(stream.engine)
        self.streams[stream.number] = stream
        self.say(protocol.Opened(stream.number, **stream.runs_on))

    def serve_streams(self) -> None:
        """Despeckle one frame of each stream that has a new one."""
        for stream in list(self.streams.values()):
            if stream.has_new_frame:
                self.attempt(stream.request, partial(self.step, stream))

    def step(self, stream: Stream) -> None:
        """Despeckle a frame of a stream."""
        number, seconds = stream.step()
        self.say(protocol.Frame(stream.number, number, seconds))

    def despeckle(self, request: protocol.Despeckle) -> None:
        """Despeckle a job."""
        self.attempt(request, partial(self._despeckle, request))
        self.cancelled.discard(request.job)
        if not self.streams:
            self.free()

    def _despeckle(self, request: protocol.Despeckle) -> None:
        from .calibration import calibrate
        from .despeckling import check_uncertainty, despeckle, needs_grain

        options = from_dict(DespeckleOptions, request.options)
        arrays = job_arrays(request.shape, request.dtype, request.uncertainty)
        frames, output, region, *maps = views(attach(request.block, request.inode, offsets_of(*arrays)[1]), *arrays)
        model, frame_options, runs_on = self.engine(options)
        if maps:
            check_uncertainty(model)
        source = region.copy() if options.region == "given" else None if options.region == "none" else options.region
        calibration = calibrate(frames, source, with_grain=needs_grain(model))
        region[...] = calibration.region
        self.say(protocol.Started(request.job, mapping=tuple(map(float, calibration.mapping)), **runs_on))
        started = last_report = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal last_report
            now = time.monotonic()
            if done == total or now > last_report + 0.02:
                last_report = now
                self.say(protocol.Progress(request.job, done, now - started))

        def cancelled() -> bool:
            self.listen(wait=False)
            self.serve_streams()
            return request.job in self.cancelled

        despeckle(
            frames,
            model,
            calibration=calibration,
            output=output,
            progress=progress,
            cancelled=cancelled,
            uncertainty=maps[0] if maps else None,
            **frame_options,
        )
        self.say(protocol.Done(request.job))

    def attempt(self, request: protocol.Despeckle | protocol.OpenStream, work: Callable[[], None]) -> None:
        """Do `work`; turn an error into an answer that ends the request."""
        from .system import Cancelled, InputError, _, out_of_memory, torch_fault

        job: Any = getattr(request, "job", None)  # a request has one or the other
        stream: Any = getattr(request, "stream", None)
        answer: protocol.Answer
        try:
            work()
            return
        except Cancelled:
            answer = protocol.Cancelled(job)
        except InputError as error:
            answer = protocol.Failed(str(error), job, stream)
        except Exception as error:
            if "torch" not in sys.modules and (fault := torch_fault()):
                text = fault
            elif out_of_memory(error):
                text = _("There is not enough memory on this computer; close other programs, or choose another device.")
                if "CUDA" in str(error) or "MPS" in str(error):
                    text = _(
                        "There is not enough memory on the graphics card; close other programs, or choose another "
                        "device."
                    )
            else:
                traceback.print_exc()
                text = f"Despeckling failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            answer = protocol.Failed(text, job, stream)
        self.streams.pop(stream, None)
        self.free()
        self.say(answer)

    @staticmethod
    def free() -> None:
        """Free the graphics card's unused memory."""
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def main() -> None:
    """Serve until standard input closes: the parent has closed it, or has ended for any reason."""
    keep_memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # a library's own print is not an answer
    lines: queue.SimpleQueue = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in sys.stdin.buffer:
                lines.put(json.loads(line))
        finally:
            os._exit(0)

    def say(answer: protocol.Answer) -> None:
        answers.write(json.dumps(protocol.encode(answer)) + "\n")

    say(protocol.Ready(os.getpid()))
    threading.Thread(target=read, daemon=True).start()
    with suppress(ImportError, OSError):  # reported when the first request needs it
        from . import despeckling, devices, filters  # noqa: F401

        say(protocol.Devices(tuple(devices.available_devices())))
    try:
        Server(lines, say).run()
    except BaseException:  # a request that cannot be understood; the thread that reads must not keep the process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
