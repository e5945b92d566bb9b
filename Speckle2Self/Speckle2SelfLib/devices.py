"""Choose the device, the precision and the number of cores for networks."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from .system import InputError, _

TURNS = 12  # timed runs when the precision is chosen
AT_ONCE_CUDA = 3  # blocks: while one is in the network, others are copied from and to the computer's memory
_preserving = threading.Lock()
_preserved_cores: list[int] = []  # one for each caller within `preserve_cores`


def available_devices() -> list[str]:
    """Return the names of the available devices, the best one first."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *available]
    if torch.backends.mps.is_available():
        available = ["mps", *available]
    return available


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the torch device for "auto", "cpu", "cuda", "cuda:1", "mps", or itself. Raises InputError if missing."""
    name, available = str(device), available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        message = _("There is no device '{name}' here; available are {available}.")
        raise InputError(message.format(name=name, available=", ".join(available)))
    return torch.device(name)


def sixteen_bits(device: torch.device) -> torch.dtype:
    """Return the 16-bit type for inference on a device.

    CUDA's kernels are as fast in float16, which rounds eight times as finely as bfloat16.
    """
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def cores() -> int:
    """Return the number of threads torch may use: the one saved by the outermost `preserve_cores`, else this
    thread's."""
    first = _preserved_cores[:1]
    return first[0] if first else torch.get_num_threads()


@contextmanager
def preserve_cores() -> Iterator[None]:
    """Restore `cores` after work that calls `torch.set_num_threads`.

    torch's number is per thread but inherited by threads that use torch later: a thread that starts while the number
    is lowered would keep the low value.
    """
    with _preserving:
        _preserved_cores.append(cores())
    try:
        yield
    finally:
        with _preserving:
            _preserved_cores.pop()


@lru_cache
def choose_precision(device: torch.device, training: bool = False) -> torch.dtype:
    """Return 16 bits (`sixteen_bits`) if measured convolutions are clearly faster with them on this device, else
    float32.

    training: always bfloat16, because gradients need its range; the time to round weights and input is included, as
    autocast rounds them in each call.
    """
    if device.type == "mps":
        return torch.float32
    sixteen = torch.bfloat16 if training else sixteen_bits(device)
    # Not a layer of torch.nn: it would draw weights and change the random numbers that follow.
    side, calls = (48, 1) if device.type == "cpu" else (256, 16)  # starting few calls is slow on a GPU
    shapes = (2, 64, side, side), (64, 64, 3, 3)
    tensors = [torch.zeros(s, device=device).to(memory_format=torch.channels_last) for s in shapes]
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], sixteen: []}
    with preserve_cores(), torch.inference_mode():
        threads = cores()
        torch.set_num_threads(1)  # several threads spend more time waiting than computing
        try:
            while len(seconds[sixteen]) < TURNS:
                for precision, runs in seconds.items():
                    x, weight = tensors if training else (tensor.to(precision) for tensor in tensors)
                    x[0, 0, 0, 0].item()
                    started = time.perf_counter()
                    with torch.autocast(device.type, sixteen, enabled=training and precision == sixteen):
                        for _ in range(calls):
                            y = F.conv2d(x, weight, padding=1)
                    y[0, 0, 0, 0].item()
                    runs.append(time.perf_counter() - started)
                slow, fast = (min(runs[1:], default=0) for runs in (seconds[sixteen], seconds[torch.float32]))
                if slow > 3 * fast:  # a run may last a tenth of a second
                    break
        finally:
            torch.set_num_threads(threads)
    return sixteen if min(seconds[sixteen]) < 0.8 * min(seconds[torch.float32]) else torch.float32


@contextmanager
def each_in_order(
    work: Callable[[Any], Any], parts: Sequence, at_once: int, device: torch.device
) -> Iterator[Iterator]:
    """Yield an iterator over the results of `work(part)`, at most `at_once` of them running at a time.

    On the CPU each runs on its own cores, with its memory near them, without waiting for the others after each
    operation; on a CUDA device each runs in its own stream, so that the network and copies to and from the device
    overlap.
    """
    threads, cuda = cores(), device.type == "cuda"
    workers = min(len(parts), at_once, at_once if cuda else threads)
    # Only OpenMP has a thread count per thread. This is checked last, because a live image has one block.
    if workers < 2 or not (cuda or "backend: OpenMP" in torch.__config__.parallel_info()):
        yield map(work, parts)
        return
    # Without the barrier, the first worker holds the GIL and delays the start of the others.
    all_started = threading.Barrier(workers, timeout=1)  # s
    streams, ready = iter(_streams(device) if cuda else ()), torch.cuda.current_stream(device) if cuda else None

    def begin() -> None:
        torch.set_num_threads(max(1, threads // workers))
        if ready is not None:
            stream = next(streams)
            stream.wait_stream(ready)
            torch.cuda.set_stream(stream)
        with suppress(threading.BrokenBarrierError):
            all_started.wait()

    pool = ThreadPoolExecutor(workers, initializer=begin)
    try:
        yield pool.map(work, parts)
    finally:
        all_started.abort()  # no worker waits for one that could not be started
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that start later inherit it


@lru_cache(maxsize=8)  # torch keeps memory for each stream that was ever used
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(AT_ONCE_CUDA))


def memory_taken(device: torch.device) -> int:
    """Return the peak memory of this process in megabytes, on the device if it is not the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
