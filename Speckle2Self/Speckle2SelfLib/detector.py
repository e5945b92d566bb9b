"""Find what a scanner drew, pixel by pixel, with a small network of its own; Documentation/method.md, 2.

It sees frames as they were recorded: at the grain of a model for despeckling, strokes of one pixel would be gone.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import checkpoint
from .devices import choose_precision
from .inference import fast_network, through_network

FILE = Path(__file__).resolve().parent.parent / "Resources" / "graphics.safetensors"  # no model for despeckling
THRESHOLD = 0.5  # of the network's output, above which a pixel is drawn
MARGIN = 1  # pixels around what is found that count as drawn, too


@lru_cache(maxsize=1)
def _detector() -> checkpoint.Model:
    return checkpoint.Model(*checkpoint.load(FILE))


@torch.inference_mode()
def find_graphics(values: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """Return where something is drawn on each of some frames, bool (N, H, W) on their device.

    Args: values, grey values (N, H, W) floating point; bounds, the smallest and largest finite value of the recording.
    """
    low, high = map(float, bounds)
    scaled = ((values.float() - low) / max(high - low, 1e-9)).nan_to_num(0).clamp_(0, 1)[:, None]  # (N, 1, H, W)
    network = fast_network(_detector(), values.device, choose_precision(values.device))
    found = through_network(network, scaled) > THRESHOLD
    return F.max_pool2d(found.float(), 2 * MARGIN + 1, 1, MARGIN)[:, 0] > 0


def graphics_in(frames: np.ndarray) -> np.ndarray:
    """Return where something is drawn on each of some frames (N, H, W) of any range, bool; one by one, which spares
    memory."""
    finite = np.isfinite(frames)
    bounds = frames.min(where=finite, initial=np.inf), frames.max(where=finite, initial=-np.inf)
    return np.concatenate([find_graphics(torch.from_numpy(frame[None]), bounds).numpy() for frame in frames])
