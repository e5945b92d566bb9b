"""The cases for comparing methods: similar frames, with everything that is known about them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from Speckle2SelfLib import files, metrics, region
from Speckle2SelfLib.grey import evenly_spaced, grey_mapping, luminance
from Speckle2SelfLib.region import fill_outside
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import InputError

from .phantom import Chart, draw

SCANNERS = {  # speckle grain (axial, lateral) in pixels, and geometry
    "fine": ((0.9, 1.3), "linear"),
    "long": ((1.2, 3.0), "linear"),
    "sector": ((1.3, 2.0), "sector"),
    "coarse": ((2.4, 3.6), "linear"),
}
LAYOUTS = ("vessel", "layers", "organ")
FOUND = 0.8  # smallest Dice coefficient, in the truth, of objects to search for in the outputs
SMALLEST = 60  # pixels of such an object


@dataclass
class Case:
    """Similar frames; (H, W) is the same for all cases of a set."""

    name: str
    frames: np.ndarray  # (N, H, W) float32 in [0, 1]; with a known truth, draws of speckle over one anatomy
    region: np.ndarray  # (H, W) bool
    truth: np.ndarray | None = None  # (H, W) float32 in [0, 1]: the expected grey value
    echogenicity: np.ndarray | None = None  # (H, W) in [0, 1]; None: the truth
    noise: float = 0.0  # variance of the truth's own error
    objects: np.ndarray | None = None  # (K, H, W) bool: objects that users would segment
    chart: Chart | None = None
    rois: dict | None = None  # see `metrics.evaluate`
    stored: dict[str, np.ndarray] = field(default_factory=dict)  # outputs of other methods, (N, H, W) float32 in [0, 1]

    @property
    def filled(self) -> np.ndarray:
        """Return the frames, with the black surroundings of the imaged part filled."""
        return fill_outside(self.frames, self.region)

    def measure(self, outputs: np.ndarray) -> dict[str, float]:
        """Return all figures that can be measured for the first outputs (n, H, W) in [0, 1]; means over the frames."""
        before, after = (fill_outside(x, self.region) for x in (self.frames[: len(outputs)], outputs))
        before, after = before * 255, np.clip(after, 0, 1) * 255
        if self.truth is None:
            return metrics.evaluate(before, after, self.rois)
        known = {
            "outputs": outputs * 255, "truth": self.truth * 255, "noise": self.noise * 255**2, "inside": self.region,
            "echogenicity": (self.truth if self.echogenicity is None else self.echogenicity) * 255,
        }  # fmt: skip
        if self.objects is not None and len(self.objects):
            known["objects"] = self.objects
        rows = []
        for image, output in zip(before, after, strict=True):
            row = metrics.measure(image, output, **known)
            rows.append(row | (self.chart.measure(output / 255) if self.chart else {}))
        return metrics.average(rows)


def segmentable(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return masks (K, H, W) of labeled objects inside the frame that Otsu's threshold finds in the truth."""
    masks = [labels == n for n in range(1, labels.max() + 1)]
    inner = [m for m in masks if m.sum() >= SMALLEST and not (m[[0, -1]].any() or m[:, [0, -1]].any())]
    return np.array([m for m in inner if metrics.dice(truth, m[None]) >= FOUND], bool).reshape(-1, *truth.shape)


def simulated_cases(size: int, repeats: int, scanners) -> list[Case]:
    """Return charts and anatomies (size, size) for each scanner, `repeats` of each, from seeds that no training uses,
    each with two draws of speckle."""
    cases = []
    for number, scanner in enumerate(scanners):
        grain, geometry = SCANNERS[scanner]
        for repeat in range(repeats):
            rng = np.random.default_rng([2507, 6828, number, repeat])
            if geometry == "linear":
                drawn = draw(size, grain, rng, looks=2)
                objects = segmentable(drawn.truth, drawn.labels)
                everywhere = np.ones((size, size), bool)
                cases.append(
                    Case(f"phantom, {scanner}", drawn.frames, everywhere, drawn.truth, objects=objects, chart=drawn)
                )
            for layout in LAYOUTS:
                made = simulate(SimulationConfig((size, size), 2, grain, layout, geometry), rng)
                objects = segmentable(made.truth, made.labels * made.region)
                cases.append(Case(f"{layout}, {scanner}", made.frames, made.region, made.truth, objects=objects))
    return cases


def real_case(path, size: int, most: int) -> Case:
    """Return at most `most` evenly spread frames of a recording, cut to the middle `size` pixels of its imaged part, or
    of an .npz file (`input`, and outputs of other methods under other names; `rois.json` next to it for gCNR, SNR)."""
    path = Path(path)
    if path.suffix == ".npz":
        return _stored_case(path)
    recording = files.read(path)
    inside = region.detect(recording.frames, recording.region)
    frames = recording.frames[evenly_spaced(len(recording.frames), most)]
    middle = [int(np.median(places)) for places in np.nonzero(inside)]
    low, high = grey_mapping(frames, inside)
    window = []
    for center, length in zip(middle, inside.shape, strict=True):
        start = int(np.clip(center - size // 2, 0, max(0, length - size)))
        window.append(slice(start, start + size))
    frames = np.clip((luminance(frames)[:, *window] - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)
    return Case(path.stem, frames, inside[*window])


def _stored_case(path: Path) -> Case:
    try:
        stored = {name: np.asarray(x) for name, x in np.load(path).items()}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable .npz file.") from error
    frames = stored.pop("input", stored.pop("frames", None))
    if frames is None or frames.ndim != 3:
        raise InputError(f"{path} has no frames (N, H, W) under the name 'input'.")
    scale = np.float32(1 / 255 if frames.dtype == np.uint8 else 1 / max(float(frames.max()), 1e-9))
    stored = {name: x * scale for name, x in stored.items() if x.shape == frames.shape}
    rois = path.with_name("rois.json")
    rois = json.loads(rois.read_text()) if rois.exists() else None
    inside = np.ones(frames.shape[1:], bool)
    return Case(path.stem, frames.astype(np.float32) * scale, inside, rois=rois, stored=stored)
