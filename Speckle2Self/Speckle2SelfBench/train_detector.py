"""Train the network that finds graphics, on simulated frames with simulated graphics.

python -m Speckle2SelfBench.train_detector POOL.npz OUTPUT.safetensors draws a pool of frames, unless the file exists,
and trains on it. Called again, it continues from OUTPUT's latest state. All randomness depends on the seed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from imageio.v3 import imread, imwrite
from scipy import ndimage

from Speckle2SelfLib import checkpoint
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.devices import choose_precision
from Speckle2SelfLib.graphics import draw_graphics
from Speckle2SelfLib.network import FastNetwork, build
from Speckle2SelfLib.simulation import LAYOUTS, simulate_recorded

SIZE = 256  # pixels of the frames of a pool
PICTURES = 8  # pictures of each tissue, with different graphics
CROP = 192  # pixels; the part of a frame that one step sees
NOTHING, DRAWN, EITHER = 0, 1, 2  # labels of pixels; the last counts neither way
VISIBLE = 3  # grey levels of 255; a pixel that changes by as much counts as drawn
BLACK = 4  # grey levels of 255
WRITTEN = 60  # grey levels of 255: letters on a black ground are lighter
GROUND = 25  # pixels; side of the square around letters whose ground counts as drawn
LOGITS = 16.0  # factor on a network's output minus 1/2
DRAWN_WEIGHT = 3.0  # weight of a missed drawn pixel, relative to a wrongly marked tissue pixel
REFLECTING = 0.4  # fraction of the tissues with straight reflectors, and, independently, with layers of skin
COARSE, STEPS = 0.12, (2, 6)  # fraction of the crops with fewer grey values; smallest and largest step between them
CONFIG = ModelConfig(width=16, deep=1, equality=True)


def outline(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return where a screen (H, W) shows an image: between random straight lines, inside a random ring, or all of it;
    maybe with a gap in the middle."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    inside = np.ones(size, bool)
    for _ in range(rng.integers(0, 5)):
        turn = np.round(rng.uniform(0, 4)) * np.pi / 2 + rng.normal(0, 0.15) * rng.integers(0, 2)
        inside &= (x - size[1] / 2) * np.cos(turn) + (y - size[0] / 2) * np.sin(turn) < rng.uniform(0.25, 0.5) * size[0]
    if rng.random() < 0.3:
        inner = rng.uniform(0, 0.8) * size[0]
        depth = np.hypot(x - size[1] * rng.uniform(0.3, 0.7), y + inner - rng.uniform(0, 30))
        inside &= (depth > inner) & (depth < inner + rng.uniform(0.6, 0.95) * size[0])
    if rng.random() < 0.15:
        inside &= np.abs(x - size[1] * rng.uniform(0.4, 0.6)) > rng.uniform(2, 12)
    return inside


def _texture(frame: np.ndarray) -> np.ndarray:
    """Return the speckle of a frame (H, W), relative to its surroundings."""
    return frame / (ndimage.uniform_filter(frame, 9) + 0.05)


def _waves(count: int, widths: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Return smooth random values (count,) with a standard deviation of 1; widths, range of the smoothing's sigma."""
    values = ndimage.gaussian_filter1d(rng.normal(size=count), rng.uniform(*widths))
    return values / values.std()


def reflectors(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add nearly straight reflectors (fascia, needles, the probe's face), some with reverberations, to a frame (H, W).

    They belong to the tissue: their profiles are soft, their brightness uneven.
    """
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(float)
    texture, inside = _texture(frame), ndimage.uniform_filter(frame, 15) > 0
    for _ in range(rng.integers(1, 5)):
        turn = rng.choice([0, rng.normal(0, 0.15), rng.uniform(0, np.pi)])
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        across = across - rng.choice([rng.uniform(0, 20), rng.uniform(*np.quantile(across, (0, 1)))])
        across += rng.choice([0, rng.uniform(0, 8)]) * np.sin(along / rng.uniform(15, 120) + rng.uniform(0, 6))
        waves = _waves(700, (2, 25), rng)
        brightness = 1 + rng.uniform(0.15, 0.5) * np.interp(along, np.arange(-250, 450), waves)
        middle, reach = rng.uniform(-50, 300), rng.choice([1000, rng.uniform(10, 150)])
        brightness *= 1 / (1 + np.exp((np.abs(along - middle) - reach) / rng.uniform(1, 8)))
        brightness *= texture if rng.random() < 0.5 else 1
        thickness, level = rng.uniform(0.7, 3), rng.uniform(0.1, 0.7)
        echoes, apart = (rng.integers(2, 6), rng.uniform(6, 30)) if rng.random() < 0.3 else (1, 1)
        for echo in range(echoes):
            profile = np.exp(-(((across - echo * apart) / thickness) ** 2) / 2)
            frame = frame + level * 0.7**echo * profile * brightness.clip(0, 2) * inside
    return frame.clip(0, 1)


def skin(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the thin, straight, speckled layers below a linear probe to a frame (H, W), brighter at some columns."""
    texture = _texture(frame)
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(float)
    y = y - rng.normal(0, 0.01) * x - rng.choice([0, rng.uniform(0, 60)])
    for depth in rng.exponential(rng.uniform(4, 25), rng.integers(3, 13)):
        waves = _waves(frame.shape[1], (4, 40), rng)
        brightness = (rng.uniform(0, 1) + rng.uniform(0.3, 1) * waves).clip(0, 2)
        profile = np.exp(-(((y - depth) / rng.uniform(0.35, 1.6)) ** 2) / 2)
        frame = frame + rng.uniform(0.1, 0.6) * profile * brightness * texture ** rng.uniform(0.3, 1)
    return frame.clip(0, 1)


def tissue(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw a simulated frame (H, W) uint8 as on a scanner's screen, without graphics."""
    axial = np.exp(rng.uniform(*np.log((0.7, 5))))
    grain = (float(axial), float(np.clip(axial * np.exp(rng.uniform(-0.2, 1.4)), 0.7, 16)))
    geometry = str(rng.choice(["linear", "sector", "piece"], p=(0.5, 0.25, 0.25)))
    layout = "natural" if rng.random() < 0.5 else str(rng.choice(LAYOUTS[:-1]))
    every = 2 if rng.random() < 0.2 else 1  # rows; layers are then as sharp as drawn lines
    frame = simulate_recorded((every * size[0], size[1]), grain, geometry, rng, layout)[0][0][::every]
    if rng.random() < REFLECTING:
        frame = reflectors(frame, rng)
    if rng.random() < REFLECTING:
        frame = skin(frame, rng)
    if rng.random() < 0.1:  # enlarged without smoothing
        frame = frame[: size[0] // 2, : size[1] // 2].repeat(2, 0).repeat(2, 1)
    return np.round(255 * frame.clip(0, 1)).astype(np.uint8)


def picture(frame: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a frame (H, W) uint8 with graphics, as recorders store it, and its labels (H, W) uint8."""
    frame = frame[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    if rng.random() < 0.2:  # a low gain: blobs on black, like wires in water
        level = np.quantile(frame, rng.uniform(0.3, 0.97))
        frame = np.clip((frame - level) * 255 / max(1, frame.max() - level), 0, 255)
    gain = rng.uniform(1, 2.5) if rng.random() < 0.3 else rng.uniform(0.45, 1)  # some of it is saturated
    shown = np.clip(rng.choice([0, rng.uniform(0, 12)]) + gain * frame, 0, 255)
    shown = np.where(outline(frame.shape, rng) if rng.random() < 0.6 else frame > 0, shown, 0).astype(np.uint8)
    labels, drawn = np.zeros(frame.shape, np.uint8), shown
    if rng.random() < 0.88:
        cine = draw_graphics(shown[None].repeat(3, 0), rng, jpeg=0)
        now = int(rng.integers(3))
        drawn, mask = cine.frames[now], cine.mask[now]
        seen = mask & (np.abs(drawn.astype(int) - shown) >= VISIBLE)
        labels[ndimage.binary_dilation(mask, np.ones((3, 3)))] = EITHER
        labels[seen] = DRAWN
    if rng.random() < 0.15:
        drawn, labels = _resize(drawn, labels, rng.uniform(0.75, 1.35))
    if rng.random() < 0.3:
        drawn = imread(imwrite("<bytes>", drawn, extension=".jpg", quality=int(rng.integers(45, 96))), extension=".jpg")
    black = ndimage.maximum_filter(drawn, 7) <= BLACK  # as black as a cyst or the surroundings; other rules decide
    labels[black & ~ndimage.maximum_filter((labels == DRAWN) & (drawn > WRITTEN), GROUND)] = NOTHING
    return drawn, labels


def _resize(frame: np.ndarray, labels: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame as stored by a frame grabber that scales the screen, cut or padded with black to its size."""
    cut = tuple(slice(0, n) for n in frame.shape)
    values = torch.from_numpy(np.stack([frame, labels == DRAWN, labels == EITHER]).astype(np.float32))[None]
    values = F.interpolate(values, scale_factor=factor, mode="bilinear", antialias=True)[0].numpy()
    short = [(0, max(0, n - m)) for n, m in zip(frame.shape, values.shape[1:], strict=True)]
    values = np.pad(values, [(0, 0), *short])[:, *cut]
    labels = np.where(values[1] > 0.3, DRAWN, np.where(values[1] + values[2] > 0.01, EITHER, NOTHING))
    return np.round(values[0]).clip(0, 255).astype(np.uint8), labels.astype(np.uint8)


def draw_pool(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and labels (PICTURES `count`, SIZE, SIZE) uint8, from a file or drawn and kept there."""
    if not path.exists():
        rng, pictures, began = np.random.default_rng(seed), [], time.monotonic()
        for number in range(count):
            frame = tissue((SIZE, SIZE), rng)
            pictures += [picture(frame, rng) for _ in range(PICTURES)]
            if number % 50 == 49:
                print(f"{number + 1} of {count} tissues, {time.monotonic() - began:.0f} s", flush=True)
        np.savez(path, **dict(zip(("frames", "labels"), map(np.stack, zip(*pictures, strict=True)), strict=True)))
    with np.load(path) as pool:
        return pool["frames"], pool["labels"]


def batch(frames: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Draw crops (size, 1, CROP, CROP) of a pool in [0, 1], with random contrast, and their labels."""
    values, targets = [], []
    for number in rng.integers(len(frames), size=size):
        top, left = rng.integers(SIZE - CROP + 1, size=2)
        cut = np.s_[top : top + CROP, left : left + CROP]
        step = rng.integers(*STEPS, endpoint=True) if rng.random() < COARSE else 1
        crop = frames[number][cut] // step * step
        values.append((crop / max(1, frames[number].max())) ** rng.uniform(0.7, 1.4))
        targets.append(labels[number][cut])
    return torch.from_numpy(np.stack(values).astype(np.float32))[:, None], torch.from_numpy(np.stack(targets))[:, None]


def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of the logits, without pixels that may be either."""
    weight = torch.where(labels == DRAWN, DRAWN_WEIGHT, 1.0) * (labels != EITHER)
    logits = LOGITS * (outputs - 0.5)
    return F.binary_cross_entropy_with_logits(logits, (labels == DRAWN).float(), weight)


def train(pool: tuple[np.ndarray, np.ndarray], output: Path, steps: int, size: int, seed: int) -> FastNetwork:
    """Train, or resume, and save the state next to the output every 200 steps."""
    torch.manual_seed(seed)
    network, state = build(CONFIG), output.with_suffix(".state")
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.05)
    first = 0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        first = kept["step"]
        for part, name in ((network, "network"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(kept[name])
    network.to(memory_format=torch.channels_last).train()
    half = choose_precision(torch.device("cpu"), training=True) == torch.bfloat16
    mean, began = 0.0, time.monotonic()
    for step in range(first, steps):
        values, labels = batch(*pool, size, np.random.default_rng([seed, step]))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = network(values.contiguous(memory_format=torch.channels_last))
        value = loss(outputs.float(), labels)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += value.item() / 200
        if step % 200 == 199 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {mean:.4f}, {time.monotonic() - began:.0f} s", flush=True)
            mean = 0.0
            checkpoint.save(output, CONFIG, network, {"description": "Finds what scanners draw; removes no speckle."})
            parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
            torch.save({"step": step + 1} | {name: part.state_dict() for name, part in parts.items()}, state)
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tissues", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    train(draw_pool(asked.pool, asked.tissues, asked.seed), asked.output, asked.steps, asked.batch, asked.seed)


if __name__ == "__main__":
    main()
