"""Measure how much of a scanner's graphics changes, how much tissue is not smoothed, how much outside is painted.

python -m Speckle2SelfBench.graphics_cases [MODEL] [--count N] prints a table over frames and cines with graphics in
fonts that no training uses, on fans, trapezoids, two images side by side, and tissue that fills the frame.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.graphics import draw_graphics
from Speckle2SelfLib.simulation import SimulationConfig, simulate

SHAPES = ("filled", "fan", "trapezoid", "two fans", "two linear")
MARGIN = 3  # pixels around graphics that may be unchanged


@dataclass
class GraphicsCase:
    """Frames with graphics over and next to an image."""

    name: str
    frames: np.ndarray  # (N, H, W) uint8
    drawn: np.ndarray  # (N, H, W) bool
    inside: np.ndarray  # (H, W) bool: imaged

    def measure(self, outputs: np.ndarray) -> dict[str, float]:
        """Return percentages: of the drawn pixels that changed; of the tissue, with grey values to smooth and farther
        than MARGIN from graphics, that did not; and of all pixels, those painted outside the image."""
        changed = self.frames != outputs
        near = np.stack([ndimage.binary_dilation(mask, np.ones((3, 3)), MARGIN) for mask in self.drawn])
        tissue = self.inside & ~near & (self.frames > 12)
        # A pixel can be unchanged by chance; around an excluded one, nothing changes.
        around = np.stack([ndimage.maximum_filter(mask, 3) for mask in changed])
        left = tissue & ~around
        painted = changed & ~self.inside & ~self.drawn
        return {
            "graphics changed": 100 * (changed & self.drawn).sum() / max(1, self.drawn.sum()),
            "tissue left": 100 * left.sum() / max(1, tissue.sum()),
            "painted outside": 100 * painted.mean(),
        }


def imaged(shape: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a mask (H, W) bool of the image on a screen, of a shape in SHAPES."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    if shape == "filled":
        return np.ones(size, bool)
    if shape in ("fan", "two fans"):
        centers = (0.5,) if shape == "fan" else (0.25, 0.75)
        half, top, inner = rng.uniform(0.3, 0.45) / len(centers), rng.uniform(-0.3, -0.05), rng.uniform(0.1, 0.3)
        aspect = size[1] / size[0]
        parts = []
        for center in centers:
            depth, angle = np.hypot((x - center) * aspect, y - top), np.arctan2((x - center) * aspect, y - top)
            parts.append((depth > inner - top) & (depth < 0.92 - top) & (np.abs(angle) < 1.4 * half))
        return np.any(parts, axis=0)
    lean, width = rng.uniform(-0.15, 0.15), rng.uniform(0.25, 0.35)
    image = (np.abs(x - 0.5) < width + lean * (y - 0.5)) & (np.abs(y - 0.5) < rng.uniform(0.4, 0.47))
    return image if shape == "trapezoid" else image & (np.abs(x - 0.5) > rng.uniform(0.01, 0.03))


def graphics_cases(
    count: int,
    size: tuple[int, int] = (240, 320),
    lengths: tuple[int, ...] = (1, 8),
    kinds: tuple[str, ...] | None = None,
    first: int = 0,
) -> list[GraphicsCase]:
    """Return `count` cases of each shape and length (frames), on tissue and with fonts that no training uses."""
    cases = []
    for number, shape in enumerate(SHAPES):
        for length in lengths:
            for repeat in range(first, first + count):
                rng = np.random.default_rng([2507, 22, number, length, repeat])
                made = simulate(
                    SimulationConfig(size, length, layout=str(rng.choice(["organ", "vessel", "layers"]))), rng
                )
                inside = imaged(shape, size, rng)
                frames = np.where(inside, np.round(4 + 240 * made.frames), 0).astype(np.uint8)
                drawn = draw_graphics(frames, rng, held_out=True, kinds=kinds, jpeg=0)
                cases.append(GraphicsCase(f"{shape}, {length}", drawn.frames, drawn.mask, inside))
    return cases


def shift(values: np.ndarray) -> np.ndarray:
    """Change every grey value in [0, 1]: pixels that are unchanged in the output lie outside the region."""
    return np.where(values > 0.5, values - 0.3, values + 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", nargs="?", help="a model or filter; without one, all that a model could change is counted"
    )
    parser.add_argument("--count", type=int, default=10, help="cases of each shape and length")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first case; thresholds were chosen on 0 to 9"
    )
    parser.add_argument("--kinds", nargs="*", help="only graphics of these kinds")
    asked = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for case in graphics_cases(asked.count, kinds=tuple(asked.kinds) if asked.kinds else None, first=asked.first):
        found = case.measure(despeckle(case.frames, asked.model or shift))
        for name in (case.name, "all, 1" if case.name.endswith(" 1") else "all, cines", "all"):
            rows.setdefault(name, []).append(found)
    names = list(next(iter(rows.values()))[0])
    print(f"{'shape, frames':20}" + "".join(f"{name + ' (%)':>22}" for name in names))
    for name, figures in rows.items():
        print(f"{name:20}" + "".join(f"{np.mean([row[key] for row in figures]):22.3f}" for key in names))


if __name__ == "__main__":
    main()
