"""Where and in which precision the networks run."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F

from .system import InputError, out_of_memory

TURNS = 12  # of the probe for the precision
SHAPES = 4  # of inputs whose recorded operations are kept at a time
_counting, _found = threading.Lock(), []  # of `cores_kept`


def available_devices() -> list[str]:
    """Names of the devices at hand, the best one first."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *available]
    if torch.backends.mps.is_available():
        available = ["mps", *available]
    return available


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1", "mps", or itself; InputError where it is not there."""
    device, available = str(device), available_devices()
    if device == "auto":
        return torch.device(available[0])
    if device not in available:
        raise InputError(f"There is no device '{device}' here; there is {', '.join(available)}.")
    return torch.device(device)


def sixteen_bits(device: torch.device) -> torch.dtype:
    """In which networks run in 16 bits, where they do: CUDA's kernels are as fast in float16, which rounds eight times
    as finely as bfloat16."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def cores() -> int:
    """The number of threads that torch may use: what the first of those that are in `cores_kept` found, else this
    thread's."""
    first = _found[:1]
    return first[0] if first else torch.get_num_threads()


@contextmanager
def cores_kept():
    """Around work that calls `torch.set_num_threads`, and puts `cores` back at its end.

    That number is for one thread, but also for those that come to torch later: one that did while another was at work
    with few would keep, and hand on, as few.
    """
    with _counting:
        _found.append(cores())
    try:
        yield
    finally:
        with _counting:
            _found.pop()


@lru_cache
def choose_precision(device: torch.device, training: bool = False) -> torch.dtype:
    """16 bits (`sixteen_bits`) where convolutions measured on this device are clearly faster so, else float32.

    training: bfloat16 everywhere, as gradients need its range, and the weights' and the input's rounding counts, too,
    which autocast does each time.
    """
    if device.type == "mps":
        return torch.float32
    sixteen = torch.bfloat16 if training else sixteen_bits(device)
    # Not a layer of torch.nn, which would draw its weights, and so move what is drawn after it.
    side, calls = (48, 1) if device.type == "cpu" else (256, 16)  # starting a few takes a GPU longer than the work
    shapes = (2, 64, side, side), (64, 64, 3, 3)
    given = [torch.zeros(s, device=device).to(memory_format=torch.channels_last) for s in shapes]
    seconds = {torch.float32: [], sixteen: []}
    with cores_kept(), torch.inference_mode():
        threads = cores()
        torch.set_num_threads(1)  # several wait for one another, and for other programs, longer than they compute
        try:
            while len(seconds[sixteen]) < TURNS:
                for precision, runs in seconds.items():
                    x, weight = given if training else (tensor.to(precision) for tensor in given)
                    x[0, 0, 0, 0].item()
                    started = time.perf_counter()
                    with torch.autocast(device.type, sixteen, enabled=training and precision == sixteen):
                        for _ in range(calls):
                            y = F.conv2d(x, weight, padding=1)
                    y[0, 0, 0, 0].item()
                    runs.append(time.perf_counter() - started)
                slow, fast = (min(runs[1:], default=0) for runs in (seconds[sixteen], seconds[torch.float32]))
                if slow > 3 * fast:  # each of its runs may take a tenth of a second
                    break
        finally:
            torch.set_num_threads(threads)
    return sixteen if min(seconds[sixteen]) < 0.8 * min(seconds[torch.float32]) else torch.float32


class Replayed:
    """A function's operations on a CUDA device, recorded once for each shape of its inputs and started as one (a CUDA
    graph): one by one, starting them takes several times as long as they do.

    A shape is recorded when it comes for the second time; the latest are kept. Where a device, a driver or its memory
    cannot, the function is called as it is. Threads take turns, and so do their streams.

    Args: function, from tensors to one tensor; most, numbers in the first inputs of all that are kept; larger ones go
    to the function directly; None: as many as SHAPES; parameters, whose gradients the function computes.
    """

    def __init__(self, function: Callable, most: int | None = None, parameters=()):
        self.function, self.most, self.parameters = function, most, list(parameters)
        self.recorded, self.lock, self.works, self.last = {}, threading.Lock(), True, None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shapes = tuple(x.shape for x in inputs)
        with self.lock:
            if not self.works or (self.most is not None and inputs[0].numel() > self.most):
                return self.function(*inputs)
            first, found = shapes not in self.recorded, self.recorded.pop(shapes, None)
            self.recorded[shapes] = found  # the latest is the last
            self._forget()
            if first:
                return self.function(*inputs)
            try:
                self.recorded[shapes] = graph, given, made, gradients = found or self._record(inputs)
            except RuntimeError as error:
                self.recorded.clear()
                if not out_of_memory(error):
                    warnings.warn(f"Nothing is recorded on this device: {error}", stacklevel=2)
                    self.works = False
                for parameter in self.parameters:
                    parameter.grad = None
                return self.function(*inputs)
            stream = torch.cuda.current_stream(inputs[0].device)
            if self.last not in (None, stream):
                stream.wait_stream(self.last)  # which may still be at work with what it was given
            self.last = stream
            for to, x in zip(given, inputs, strict=True):
                to.copy_(x)
            graph.replay()
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            return made.clone()

    def _forget(self) -> None:
        """All but the latest shapes, so that not more than `most` is kept."""
        kept = 0
        for number, shapes in enumerate(reversed(list(self.recorded))):
            kept += shapes[0].numel()
            if number >= SHAPES if self.most is None else kept > self.most:
                if self.last is not None:
                    self.last.synchronize()  # its memory may still be in use
                del self.recorded[shapes]

    def _record(self, inputs):
        given, place = [x.clone() for x in inputs], inputs[0].device
        stream, graph, now = torch.cuda.Stream(place), torch.cuda.CUDAGraph(), torch.cuda.current_stream(place)
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            self.function(*given)  # libraries set up what they need
            for parameter in self.parameters:
                parameter.grad = None
            stream.synchronize()
            # Not `torch.cuda.graph`, which collects garbage and gives all free memory back, a tenth of a second.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                made = self.function(*given)
            finally:
                graph.capture_end()
        now.wait_stream(stream)
        return graph, given, made, [parameter.grad for parameter in self.parameters]
