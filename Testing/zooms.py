"""Draw eight-fold zooms of structures on which artifacts would show: Documentation/zooms.png.

    .venv/bin/python Testing/zooms.py [FILE]

Simulated anatomy with known truth: a vessel's wall, fascia, the surface of a bone and its shadow, a needle,
a cyst and a flat piece of tissue, before, in truth, and after the bundled model and two classical filters.
"""

import sys
from pathlib import Path

import numpy as np

from Speckle2SelfBench.report import plot
from Speckle2SelfLib.filters import nlm, srad

sys.path.insert(0, str(Path(__file__).resolve().parent / "Python" / "core"))
from test_no_invention import X, Y, phantom, step

PART = (24, 28)  # rows and columns to show


def layer(anatomy, depth, height, sigma, coherent):
    """Add a bright layer at a depth (H, W), `height` dB, with an echo without speckle if `coherent`."""
    profile = np.exp(-(((Y - depth) / sigma) ** 2) / 2)
    anatomy.decibels += height * profile
    if coherent:
        anatomy.specular = np.maximum(anatomy.specular, height + anatomy.decibels - 40 * (1 - profile))


def vessel(anatomy):
    distance = np.hypot(Y - 64, (X - 64) / 1.6) - 36
    anatomy.decibels -= 32 * step(distance)
    anatomy.decibels += 12 * np.exp(-(((distance - 2) / 1.2) ** 2) / 2)


def fascia(anatomy):
    for number, height in enumerate((14, 10, 16)):
        layer(anatomy, 54 + 9 * number + 3 * np.sin(X / (20 + 9 * number)), height, 1.0, coherent=number != 1)


def bone(anatomy):
    surface = 64 + ((X - 64) / 30) ** 2 * 6
    layer(anatomy, surface, 22, 1.2, coherent=True)
    anatomy.decibels -= 30 * step(surface + 3 - Y)


def needle(anatomy):
    layer(anatomy, 64 + 0.45 * (X - 64), 20, 0.6, coherent=True)


def cyst(anatomy):
    anatomy.decibels -= 35 * step(np.hypot(Y - 64, X - 64) - 9)


def flat(anatomy):
    pass


SHOWN = {  # structure: how to draw it, and the middle of the part to show
    "vessel wall": (vessel, (97, 80)), "fascia": (fascia, (64, 64)), "bone, shadow": (bone, (68, 68)),
    "needle": (needle, (64, 64)), "cyst": (cyst, (64, 64)), "flat tissue": (flat, (64, 64)),
}  # fmt: skip


def images(put, seed):
    """Return input, truth and results, each (H, W) in [0, 1]."""
    simulated, output = phantom(put, frames=1, seed=seed)
    frames = simulated.frames
    return {
        "input": frames[0], "truth": simulated.truth, "default": output[0],
        "SRAD": srad(frames)[0], "NLM": nlm(frames)[0],
    }  # fmt: skip


def main(path: Path) -> None:
    whole = plot(12.5, 13.5)
    lines = whole.subplots(len(SHOWN), 5)
    for number, (line, (what, (put, middle))) in enumerate(zip(lines, SHOWN.items(), strict=True)):
        window = tuple(slice(m - n // 2, m - n // 2 + n) for m, n in zip(middle, PART, strict=True))
        for axes, (name, image) in zip(line, images(put, number).items(), strict=True):
            axes.imshow(image[window], "gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"{what}: {name}" if name == "input" else name, loc="left", fontsize=12)
            axes.set_axis_off()
    whole.savefig(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "Documentation/zooms.png"))
