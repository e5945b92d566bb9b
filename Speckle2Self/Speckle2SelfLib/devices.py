"""Where and in which precision the networks run."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
import torch.nn.functional as F

from .config import InputError

TURNS = 12  # of the probe for the precision


def available_devices() -> list[str]:
    """Names of the devices at hand, the best one first."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *available]
    if torch.backends.mps.is_available():
        available = ["mps", *available]
    return available


def choose_device(device: str = "auto") -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1", "mps"; InputError where it is not there."""
    available = available_devices()
    if device == "auto":
        return torch.device(available[0])
    if device not in available:
        raise InputError(f"There is no device '{device}' here; there is {', '.join(available)}.")
    return torch.device(device)


@lru_cache
def choose_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where a convolution measured on this device is clearly faster with it, else float32."""
    if device.type == "mps":
        return torch.float32
    # Not a layer of torch.nn, which would draw its weights, and so move what is drawn after it.
    shapes = (2, 64, 48, 48), (64, 64, 3, 3)
    x, weight = (torch.zeros(s, device=device).to(memory_format=torch.channels_last) for s in shapes)
    seconds = {torch.float32: [], torch.bfloat16: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another, and for other programs, longer than they compute
    try:
        with torch.inference_mode():
            while len(seconds[torch.bfloat16]) < TURNS:
                for precision, runs in seconds.items():
                    started = time.perf_counter()
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                        F.conv2d(x, weight, padding=1).sum().item()
                    runs.append(time.perf_counter() - started)
                slow, fast = (min(runs[1:], default=0) for runs in (seconds[torch.bfloat16], seconds[torch.float32]))
                if slow > 3 * fast:  # each of its runs may take a tenth of a second
                    break
    finally:
        torch.set_num_threads(threads)
    return torch.bfloat16 if min(seconds[torch.bfloat16]) < 0.8 * min(seconds[torch.float32]) else torch.float32
