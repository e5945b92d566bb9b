"""Random changes of training frames: drawn once, applied to all views (the paper's section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Augmentation:
    """Changes of a batch, drawn once and applied to all views."""

    matrices: torch.Tensor | None = None  # (B, 2, 3) of `affine_grid`; None: leave positions unchanged
    flips: tuple[int, ...] = ()  # axes
    gain: float = 1.0

    def share(self, part: slice) -> Augmentation:
        """Return the augmentation of this part of the batch."""
        return self if self.matrices is None else replace(self, matrices=self.matrices[part])


def draw_flip_and_gain(rng: np.random.Generator) -> Augmentation:
    """Draw flips of a batch (p = 0.5 in each direction) and a change of its gain by up to 20 %."""
    flips = tuple(axis for axis in (-1, -2) if rng.random() < 0.5)
    return Augmentation(None, flips, float(rng.uniform(0.8, 1.2)))


def draw_affine(rng: np.random.Generator, batch: int) -> Augmentation:
    """Draw the paper's augmentation of each frame: flips (p = 0.3 in each direction) and, with p = 0.3, a shift by up
    to 10 %, a scaling by up to 20 % and a rotation by up to 30 degrees."""
    matrices = np.zeros((batch, 2, 3), np.float32)
    for matrix in matrices:
        flip = np.diag(np.where(rng.random(2) < 0.3, -1.0, 1.0))
        matrix[:, :2] = flip
        if rng.random() < 0.3:
            angle, scale = np.deg2rad(rng.uniform(-30, 30)), 1 + rng.uniform(-0.2, 0.2)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            matrix[:, :2] = turn @ flip / scale
            matrix[:, 2] = 2 * rng.uniform(-0.1, 0.1, 2)
    return Augmentation(torch.from_numpy(matrices))


def augment(x: torch.Tensor, drawn: Augmentation) -> torch.Tensor:
    """Apply an augmentation to a view (B, C, H, W); the shape is kept."""
    if drawn.matrices is not None:
        matrices, (height, width) = drawn.matrices.to(x, copy=True), x.shape[-2:]
        matrices[:, 0, 1] *= height / width  # positions count from -1 to 1 along either side
        matrices[:, 1, 0] *= width / height
        grid = F.affine_grid(matrices, list(x.shape), align_corners=False)  # (B, H, W, 2)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    if drawn.flips:
        x = x.flip(drawn.flips)
    return x if drawn.gain == 1 else x * drawn.gain
