"""The other methods of the benchmark, each in a few lines; they are not offered to users.

Each learns from frames (N, H, W) float32 in [0, 1] for a number of seconds and returns a function from such frames to
frames. Unless noted, they train the same backbone, `FastNetwork(32)`, on crops of `CROP` pixels, `BATCH` per step,
flipped, with Adam at 1e-3 falling along a cosine over the time: they differ in the idea, not in size or tuning.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter
from torch import nn

from Speckle2SelfLib.devices import choose_precision
from Speckle2SelfLib.filters import speckle_level
from Speckle2SelfLib.inference import through_network
from Speckle2SelfLib.network import FastNetwork

BATCH = 6
CROP = 96  # pixels

Apply = Callable[[np.ndarray], np.ndarray]  # (N, H, W) float32 in [0, 1] -> the same


def _autocast(device: torch.device):
    return torch.autocast(
        device.type, torch.bfloat16, enabled=choose_precision(device, training=True) == torch.bfloat16
    )


def _fit(parameters, loss, seconds: float, device: torch.device) -> int:
    """Minimize `loss(fraction of the time elapsed)` for the seconds, at least one step; return the number of steps."""
    optimiser = torch.optim.Adam(parameters, 1e-3, (0.9, 0.99))
    started, steps, share = time.monotonic(), 0, 0.0
    while share < 1:
        optimiser.param_groups[0]["lr"] = 1e-3 * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * share)))
        with _autocast(device):
            value = loss(share)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        value.item()  # waits for the device, so that the time is correct
        steps, share = steps + 1, (time.monotonic() - started) / max(seconds, 1e-9)
    return steps


def _backbone(seed: int, device: torch.device) -> FastNetwork:
    torch.manual_seed(seed)
    return FastNetwork(32).to(device, memory_format=torch.channels_last)


def _crops(stacks, rng, device: torch.device) -> list[torch.Tensor]:
    """Return the same random windows and flips of each of the stacks (N, H, W): tensors (B, 1, h, w)."""
    size = [min(CROP, n // 16 * 16) for n in stacks[0].shape[1:]]
    flips = tuple(axis for axis in (-1, -2) if rng.random() < 0.5)
    room = np.array(stacks[0].shape) - (1, *size) + 1
    places = rng.integers(room, size=(BATCH, 3))
    cut = [np.stack([stack[n, y : y + size[0], x : x + size[1]] for n, y, x in places]) for stack in stacks]
    return [torch.from_numpy(c)[:, None].to(device).flip(flips) for c in cut]


def _inference(network, device: torch.device, function=None) -> Apply:
    """Return a function that runs frames one at a time through `function` ((1, 1, H, W) to the same), or `network`."""
    network.eval()
    function = function or (lambda x: through_network(network, x))

    def apply(frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), _autocast(device):
            done = [function(torch.from_numpy(f)[None, None].to(device)).float().clamp(0, 1) for f in frames]
        return torch.cat(done)[:, 0].cpu().numpy()

    return apply


def noise2true(frames, seconds, seed=0, device="cpu", *, truth) -> Apply:
    """Train with supervision by the known truth (N, H, W) of the same frames: an upper bound, not a method."""
    return _paired([frames, truth], seconds, seed, device, swap=False)


def noise2noise(frames, seconds, seed=0, device="cpu", *, second) -> Apply:
    """Train as Lehtinen et al., ICML 2018: `second` (N, H, W) holds the same anatomy with independent speckle."""
    return _paired([frames, second], seconds, seed, device, swap=True)


def _paired(stacks, seconds, seed, device, swap: bool) -> Apply:
    device, rng = torch.device(device), np.random.default_rng(seed)
    network = _backbone(seed, device)

    def loss(share):
        x, target = _crops(stacks, rng, device)
        x, target = (target, x) if swap and rng.random() < 0.5 else (x, target)
        return F.mse_loss(network(x), target)

    _fit(network.parameters(), loss, seconds, device)
    return _inference(network, device)


def noise2void(frames, seconds, seed=0, device="cpu", share=0.016, reach=2) -> Apply:
    """Train as Krull, Buchholz, Jug, CVPR 2019: predict pixels replaced by random neighbors within `reach`."""
    device, rng = torch.device(device), np.random.default_rng(seed)
    network = _backbone(seed, device)
    shifts = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if (y, x) != (0, 0)]

    def loss(_):
        (x,) = _crops([frames], rng, device)
        dy, dx = shifts[rng.integers(len(shifts))]
        blind = torch.rand(x.shape, device=device) < share
        seen = torch.where(blind, x.roll((dy, dx), (-2, -1)), x)
        return (F.mse_loss(network(seen), x, reduction="none") * blind).sum() / blind.sum().clamp_min(1)

    _fit(network.parameters(), loss, seconds, device)
    return _inference(network, device)


def noise2self(frames, seconds, seed=0, device="cpu", period=4) -> Apply:
    """Train as Batson and Royer, ICML 2019: predict pixels on a grid, replaced by their neighbors' mean.

    The output is J-invariant: each pixel comes from the pass in which it was hidden, `period` squared passes.
    """
    device, rng = torch.device(device), np.random.default_rng(seed)
    network = _backbone(seed, device)
    ring = torch.tensor([[0.5, 1, 0.5], [1, 0, 1], [0.5, 1, 0.5]], device=device)[None, None] / 6

    def hide(x, phase):
        mask = torch.zeros(x.shape, dtype=torch.bool, device=device)
        mask[..., phase // period :: period, phase % period :: period] = True
        return torch.where(mask, F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), ring).to(x.dtype), x), mask

    def loss(_):
        (x,) = _crops([frames], rng, device)
        seen, mask = hide(x, int(rng.integers(period**2)))
        return F.mse_loss(network(seen)[mask], x[mask])

    def whole(x):
        result = torch.empty_like(x)
        for phase in range(period**2):
            seen, mask = hide(x, phase)
            result[mask] = through_network(network, seen).float()[mask]
        return result

    _fit(network.parameters(), loss, seconds, device)
    return _inference(network, device, whole)


def _neighbours(x: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two half-size images (B, 1, H/2, W/2) of neighbors in each 2x2 cell; choice (B, 1, H/2, W/2) in 0..7."""
    pairs = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 0], [3, 1], [1, 3], [3, 2], [2, 3]], device=x.device)
    cells = F.pixel_unshuffle(x, 2)  # (B, 4, H/2, W/2)
    return tuple(cells.gather(1, pairs[choice, n]) for n in (0, 1))


def neighbor2neighbor(frames, seconds, seed=0, device="cpu", weight=2.0) -> Apply:
    """Train as Huang et al., CVPR 2021: one random neighbor of each 2x2 cell predicts another, with their regularizer,
    whose weight rises to `weight`."""
    device, rng = torch.device(device), np.random.default_rng(seed)
    network = _backbone(seed, device)

    def loss(share):
        (x,) = _crops([frames], rng, device)
        choice = torch.randint(8, (len(x), 1, x.shape[-2] // 2, x.shape[-1] // 2), device=device)
        first, second = _neighbours(x, choice)
        with torch.no_grad():
            whole = _neighbours(network(x), choice)
        difference = network(first) - second
        return difference.square().mean() + weight * share * (difference - (whole[0] - whole[1])).square().mean()

    _fit(network.parameters(), loss, seconds, device)
    return _inference(network, device)


def zsn2n(frames, seconds, seed=0, device="cpu") -> Apply:
    """Train as Mansour and Heckel, CVPR 2023 (ZS-N2N): for each frame a tiny network (three convolutions, 48 channels,
    not the backbone) predicts the noise from the means of the two diagonals of 2x2 cells.

    The frames share the seconds evenly; fitting happens when the function is called.
    """
    device = torch.device(device)

    def halves(x):
        cells = F.pixel_unshuffle(x, 2)
        return (cells[:, 0:1] + cells[:, 3:4]) / 2, (cells[:, 1:2] + cells[:, 2:3]) / 2

    def one(frame):
        torch.manual_seed(seed)
        height, width = frame.shape
        x = torch.from_numpy(np.pad(frame, ((0, height % 2), (0, width % 2)), mode="edge"))[None, None].to(device)
        network = nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(48, 48, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(48, 1, 1),
        ).to(device)  # fmt: skip
        a, b = halves(x)

        def loss(_):
            clean_a, clean_b = a - network(a), b - network(b)
            whole_a, whole_b = halves(x - network(x))
            residual = F.mse_loss(clean_a, b) + F.mse_loss(clean_b, a)
            return (residual + F.mse_loss(clean_a, whole_a) + F.mse_loss(clean_b, whole_b)) / 2

        _fit(network.parameters(), loss, seconds / len(frames), device)
        with torch.inference_mode():
            return (x - network(x)).clamp(0, 1)[0, 0, :height, :width].cpu().numpy()

    return lambda some: np.stack([one(frame) for frame in some])


def deep_image_prior(frames, seconds, seed=0, device="cpu", channels=8) -> Apply:
    """Fit as Ulyanov, Vedaldi, Lempitsky, CVPR 2018: for each frame, the backbone is fitted from fixed noise (jittered
    by 0.03) to the frame; the result is the running mean of its outputs at the end.

    The given frames share the seconds evenly; fitting happens when the function is called.
    """
    device = torch.device(device)

    def one(frame):
        torch.manual_seed(seed)
        height, width = frame.shape
        padded = np.pad(frame, ((0, -height % 8), (0, -width % 8)), mode="edge")
        target = torch.from_numpy(padded)[None, None].to(device)
        network = FastNetwork(32)
        network.stem = nn.Conv2d(4 * channels, 16, 3, padding=1)  # for several input channels
        network.to(device)
        noise = torch.rand(1, channels, *padded.shape, device=device) * 0.1 + 0.2
        mean = None

        def loss(share):
            nonlocal mean
            out = network(noise + 0.03 * torch.randn_like(noise))
            mean = out.detach() if share < 0.5 else 0.98 * mean + 0.02 * out.detach()
            return F.mse_loss(out, target)

        _fit(network.parameters(), loss, seconds / len(frames), device)
        return mean.float().clamp(0, 1)[0, 0, :height, :width].cpu().numpy()

    return lambda some: np.stack([one(frame) for frame in some])


def obnlm(frames: np.ndarray, search: int = 8, half: int = 2, stride: int = 2, strength: float = 0.5) -> np.ndarray:
    """Filter as Coupe et al., IEEE TIP 2009: blockwise non-local means with the Pearson distance (u - v)^2 / v.

    Blocks of 2 half + 1 pixels, every `stride` pixels, are compared within `search` pixels; overlapping blocks are
    averaged. The smoothing is `strength` times the expected distance of two blocks of pure speckle, measured in each
    frame.
    """
    out = np.empty_like(frames, np.float32)
    size = 2 * half + 1
    shifts = [(y, x) for y in range(-search, search + 1) for x in range(-search, search + 1)]
    for frame, result in zip(frames, out, strict=True):
        image = frame.astype(np.float32) + 0.02  # the distance has no meaning at zero
        height, width = image.shape
        wide = np.pad(image, search, mode="reflect")
        mean = uniform_filter(image, size)
        variance = np.maximum(uniform_filter(image**2, size) - mean**2, 0)
        scale = strength * 2 * max(float(np.median(variance / mean)), 1e-6)
        total, weights = np.zeros(image[::stride, ::stride].shape, np.float32), []
        for y, x in shifts:
            other = wide[search + y : search + y + height, search + x : search + x + width]
            distance = uniform_filter((image - other) ** 2 / other, size)[::stride, ::stride]
            weights.append(np.exp(-distance / scale))
            total += weights[-1]
        summed, covered = np.zeros_like(image), np.zeros_like(image)
        for (y, x), weight in zip(shifts, weights, strict=True):
            spread = np.zeros_like(image)
            spread[::stride, ::stride] = weight / total
            spread = uniform_filter(spread, size, mode="constant")
            summed += spread * wide[search + y : search + y + height, search + x : search + x + width]
            covered += spread
        result[:] = np.clip(summed / covered - 0.02, 0, 1)
    return out


def bm3d(frames: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Filter as Dabov et al., IEEE TIP 2007, by the authors' package, which is free only for non-commercial use and
    not installed; `strength` is relative to each frame's measured speckle. Raises ImportError without it."""
    from bm3d import bm3d as run

    done = [run(frame, max(strength * speckle_level(frame), 1e-3)) for frame in frames]
    return np.clip(done, 0, 1).astype(np.float32)
