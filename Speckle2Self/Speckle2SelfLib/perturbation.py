"""Turn a frame into its views at the published scales (the paper's section 3.2; Documentation/method.md, section 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

PUBLISHED_SCALES = (1.0, 0.5, 0.25)


def min_max(x: torch.Tensor) -> torch.Tensor:
    """Map each image of (B, 1, H, W) to [0, 1] separately; a constant image becomes zeros."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)  # (B, 1, 1, 1)
    return (x - low) / torch.where(high > low, high - low, torch.ones_like(high))


def published_views(frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the paper's multi-scale perturbation: down to 1, 1/2, 1/4 and back up, each normalized on its own.

    Both resizings are bilinear without antialiasing, in 8-bit arithmetic for 8-bit frames as in the authors' code.

    Args: frames (B, 1, H, W), uint8 or floating point of any range; H, W >= 4.
    Returns three float32 tensors of that shape in [0, 1], full scale first.
    """
    height, width = frames.shape[-2:]
    views = []
    for scale in PUBLISHED_SCALES:
        small = resize(frames, (int(height * scale), int(width * scale)))
        views.append(min_max(resize(small, (height, width)).float()))  # (B, 1, H, W)
    return tuple(views)


def resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (B, 1, H, W), 8-bit or floating point, to (B, 1, *size) bilinearly, without antialiasing."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    if torch.is_floating_point(frames):
        return F.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False)
    return resize_8_bit(frames.long(), size)


def resize_8_bit(frames: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
    """Resize integers bilinearly as OpenCV does, down to its fixed-point rounding.

    The published views were made this way, and a difference of one grey level would show in their normalization.

    Args: frames (B, 1, H, W) int64 in [0, 255]; to, the new (H, W).
    """
    left, right, share = (t.to(frames.device) for t in _linear_weights(frames.shape[-1], to[1]))
    rows = (frames[..., left] * (2048 - share) + frames[..., right] * share) >> 4  # (B, 1, H, w)
    above, below, share = (t.to(frames.device) for t in _linear_weights(frames.shape[-2], to[0]))
    share = share[:, None]  # (h, 1)
    return ((((2048 - share) * rows[..., above, :]) >> 16) + ((share * rows[..., below, :]) >> 16) + 2) >> 2


def _linear_weights(size: int, to: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return, for each of `to` pixels, its two neighbors among `size` along an axis, the second's share in 1/2048."""
    at = (torch.arange(to, dtype=torch.float64) + 0.5) * size / to - 0.5
    below = torch.floor(at)
    share = torch.round((at - below) * 2048).long()
    below = below.long()
    return below.clamp(0, size - 1), (below + 1).clamp(0, size - 1), share
