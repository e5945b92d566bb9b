"""Figures of merit, as defined in Documentation/method.md, section 4, and their only list: `FIGURES`.

A new figure is a function here and an entry of the list, which tables, the command line, the panels, the benchmark and
the selection of trained models read. Images are on the 8-bit scale, 0 to 255. scipy and scikit-image are imported where
they are needed, because Slicer does not bundle them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .system import _

BLUR = 3.0  # pixels; the scale at which input and output are compared
FLAT = 0.04 * 255  # grey levels; the truth counts as flat if it varies less within 9 x 9 pixels


def reference(image: np.ndarray) -> np.ndarray:
    """Return the input (H, W), blurred: the speckle-free reference that outputs are compared with."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.asarray(image, float), BLUR)


def match_mapping(image: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Return `output` with the histogram of the blurred input, so that a darker or flatter mapping gains nothing."""
    from skimage.exposure import match_histograms

    return match_histograms(np.asarray(output, float), reference(image))


def homogeneity(image: np.ndarray, output: np.ndarray) -> float:
    """Return the matched output's co-occurrence homogeneity (Hom): distance 1, four directions, 64 grey levels."""
    from skimage.feature import graycomatrix, graycoprops

    levels = np.clip(match_mapping(image, output) / 4, 0, 63).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    return float(graycoprops(graycomatrix(levels, [1], angles, 64, symmetric=True, normed=True), "homogeneity").mean())


def holes(image: np.ndarray, output: np.ndarray) -> float:
    """Return the share of pixels that are black (<= 2) in the output where the blurred input is not (> 10)."""
    return float(np.mean((np.asarray(output) <= 2) & (reference(image) > 10)))


def structure(image: np.ndarray, output: np.ndarray) -> float:
    """Return the rank correlation of the blurred output with the blurred input; 0 for a constant output, NaN for a
    constant input."""
    blurred, expected = reference(output).ravel(), reference(image).ravel()
    if np.ptp(image) == 0:
        return float("nan")
    if np.ptp(output) == 0:
        return 0.0
    return float(np.corrcoef(np.column_stack((_ranks(blurred), _ranks(expected))), rowvar=False)[1, 0])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value (N,); equal values share their mean rank. scipy.stats takes long to import."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def gcnr(lumen: np.ndarray, tissue: np.ndarray, bins: int = 64) -> float:
    """Return the generalized contrast-to-noise ratio of two regions' values: 1 minus the overlap of their histograms.

    Rodriguez-Molares et al., IEEE TUFFC 2020. Monotone mappings do not change it, up to the bins.
    """
    a, b = np.ravel(lumen), np.ravel(tissue)
    span = min(a.min(), b.min()), max(a.max(), b.max()) + 1e-9
    return float(1 - np.minimum(np.histogram(a, bins, span)[0] / a.size, np.histogram(b, bins, span)[0] / b.size).sum())


def cnr(lumen: np.ndarray, tissue: np.ndarray) -> float:
    """Return two regions' contrast-to-noise ratio: difference of means over the root of summed variances."""
    return float(abs(np.mean(lumen) - np.mean(tissue)) / (np.sqrt(np.var(lumen) + np.var(tissue)) + 1e-9))


def snr(tissue: np.ndarray) -> float:
    """Return mean over standard deviation in homogeneous tissue; 1.91 for the envelope of fully developed speckle."""
    return float(np.mean(tissue) / (np.std(tissue) + 1e-9))


def mean(values: np.ndarray) -> float:
    """Return the mean of a region's values, without matching."""
    return float(np.mean(values))


def std(values: np.ndarray) -> float:
    """Return the standard deviation of a region's values, without matching."""
    return float(np.std(values))


def to_truth(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return `output` after the monotone mapping that fits it to `truth` best (isotonic regression)."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(output, axis=None, kind="stable")
    values, first, count = np.unique(np.ravel(output)[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(np.ravel(truth)[order].astype(float), first)
    fitted = isotonic_regression(sums / count, weights=count).x
    return fitted[np.searchsorted(values, np.ravel(output))].reshape(np.shape(output))


def psnr(output: np.ndarray, echogenicity: np.ndarray, span: float = 255.0, inside: np.ndarray | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB against known echogenicity, after `to_truth`.

    Args: inside, the pixels to measure, if given.
    """
    from skimage.metrics import peak_signal_noise_ratio

    output, truth = (np.asarray(x, float)[... if inside is None else inside] for x in (output, echogenicity))
    return float(peak_signal_noise_ratio(truth, to_truth(output, truth), data_range=span))


def ssim(output: np.ndarray, echogenicity: np.ndarray, span: float = 255.0, inside: np.ndarray | None = None) -> float:
    """Return the structural similarity to known echogenicity, after `to_truth`; of pixels `inside`, if given."""
    from skimage.metrics import structural_similarity

    truth = np.asarray(echogenicity, float)
    inside = np.ones(truth.shape, bool) if inside is None else inside
    mapped = truth.copy()  # pixels outside are made equal
    mapped[inside] = to_truth(np.asarray(output)[inside], truth[inside])
    if inside.all():
        return float(structural_similarity(truth, mapped, data_range=span))
    return float(structural_similarity(truth, mapped, data_range=span, full=True)[1][inside].mean())


def flat(output: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Return the error (root mean square, share of the grey range) after `to_truth`, where the truth changes by less
    than `FLAT` within 9 x 9 pixels; NaN if that is 100 pixels or fewer."""
    from scipy.ndimage import maximum_filter, minimum_filter

    even = (maximum_filter(truth, 9) - minimum_filter(truth, 9) < FLAT)[inside]
    if even.sum() <= 100:
        return float("nan")
    return float(np.sqrt(np.mean((to_truth(output[inside], truth[inside]) - truth[inside])[even] ** 2)) / 255)


def rms(outputs: np.ndarray, truth: np.ndarray, noise: float = 0.0, inside: np.ndarray | None = None) -> float:
    """Return the root mean square difference (share of the grey range) of outputs (N, H, W) from the expected grey
    value (H, W), corrected for that value's own error of variance `noise` (grey levels squared); of pixels `inside`, if
    given."""
    squares = np.square(np.asarray(outputs, float) - truth)[:, ... if inside is None else inside]
    return float(np.sqrt(max(squares.mean() - noise, 0)) / 255)


def repeat(outputs: np.ndarray, inside: np.ndarray | None = None) -> float:
    """Return the root mean square deviation (share of the grey range) among outputs (N, H, W) for independent draws of
    speckle over one anatomy: structure invented from speckle. NaN for a single output."""
    if len(outputs) < 2:
        return float("nan")
    variance = np.var(np.asarray(outputs, float), axis=0, ddof=1)[... if inside is None else inside]
    return float(np.sqrt(variance.mean()) / 255)


def _slopes(image: np.ndarray) -> np.ndarray:
    """Return (2, H, W), the derivatives of an image (H, W), blurred by 1 pixel."""
    from scipy.ndimage import gaussian_filter

    return np.stack(np.gradient(gaussian_filter(np.asarray(image, float), 1)))


def kept_slopes(outputs: np.ndarray, truth: np.ndarray, noise: float = 0.0, inside: np.ndarray | None = None) -> float:
    """Return the share of the true slopes that outputs (N, H, W) still have: the least-squares slope of their gradients
    on those of the expected grey value (H, W), whose own error has the variance `noise`; 5 pixels within `inside`, if
    given."""
    from scipy.ndimage import binary_erosion

    counted = ... if inside is None or inside.all() else binary_erosion(inside, iterations=5)
    measured, true = (_slopes(image)[:, counted] for image in (np.mean(outputs, axis=0), truth))
    error = _slopes(np.random.default_rng(1).normal(0, np.sqrt(noise), np.shape(truth)))  # as in the truth
    return float((measured * true).mean() / max((true * true).mean() - error.var(), 1e-9))


def dice(output: np.ndarray, objects: np.ndarray) -> float:
    """Return how well Otsu's threshold finds known objects, masks (K, H, W): their mean Dice coefficient.

    Each object is searched for in a box twice its width and height, as users draw it; whether it is darker or brighter
    than its surroundings is known. NaN without objects.
    """
    from skimage.filters import threshold_otsu

    coefficients = []
    for mask in objects:
        spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
        more = [max(2, (span[-1] - span[0] + 1) // 2) for span in spans]
        box = tuple(slice(max(0, s[0] - m), s[-1] + 1 + m) for s, m in zip(spans, more, strict=True))
        part, target = np.asarray(output)[box], mask[box]
        bright = part > threshold_otsu(part)
        overlaps = [2 * (side & target).sum() / (side.sum() + target.sum()) for side in (bright, ~bright)]
        coefficients.append(max(overlaps))
    return float(np.mean(coefficients)) if coefficients else float("nan")


def edge_width(image: np.ndarray, start: Sequence[float], end: Sequence[float], lines: int = 1) -> float:
    """Return the 10-90 % rise distance in pixels on the line from `start` to `end` (row, column) across a known edge.

    lines: neighboring parallel lines, one pixel apart, that are averaged first.
    """
    from scipy.ndimage import map_coordinates

    first, last = np.asarray(start, float), np.asarray(end, float)
    length = np.hypot(*(last - first))
    along = (last - first) / length
    across = np.array([-along[1], along[0]])
    t = np.linspace(0, length, max(2, int(np.ceil(length * 10)) + 1))
    offsets = np.arange(lines) - (lines - 1) / 2
    points = first[:, None, None] + along[:, None, None] * t + across[:, None, None] * offsets[:, None]
    profile = map_coordinates(np.asarray(image, float), points, order=1, mode="nearest").mean(0)
    tail = max(1, len(t) // 10)
    low, high = profile[:tail].mean(), profile[-tail:].mean()
    rise = (profile - low) / (high - low) if high != low else np.full_like(profile, np.nan)
    if np.isnan(rise).any():
        return float("nan")
    last_low = t[np.flatnonzero(rise <= 0.1)[-1]] if (rise <= 0.1).any() else t[0]
    after = (t > last_low) & (rise >= 0.9)
    return float(t[np.argmax(after)] - last_low) if after.any() else float(length)


def flicker(before: np.ndarray, after: np.ndarray, tissue: np.ndarray) -> float:
    """Return the deviation over time of the tissue's mean in a static scene (N, H, W), after / before.

    Below 1 is better.
    """
    deviations = [np.std([frame[tissue].mean() for frame in frames]) for frames in (after, before)]
    return float(deviations[0] / (deviations[1] + 1e-12))


@dataclass(frozen=True)
class Figure:
    """A figure of merit: its name, its function, and how it is printed and judged."""

    name: str  # name in files
    heading: str  # name in tables
    digits: int  # decimals
    better: str  # "higher" or "lower"; "": neither
    meaning: str  # description for users, one line
    function: Callable[..., float] | None = None  # None: the benchmark measures it on its phantom or with its clock
    tolerance: float | None = None  # a trained model is worse than its start by more than this; None: not judged by it
    relative: bool = False  # whether the tolerance is a fraction of the initial value
    label: str = ""  # name for users who train; "": the same

    @cached_property
    def takes(self) -> dict[str, bool]:
        """Return the names of the function's arguments, and whether each is required.

        image, output (H, W); tissue and lumen, matched values; values of a region, not matched; echogenicity, truth
        (H, W); outputs (N, H, W) of draws of speckle ...
        """
        names = inspect.signature(self.function).parameters.values() if self.function else ()
        return {one.name: one.default is one.empty for one in names}

    def measure(self, known: dict) -> float | None:
        """Return the figure from the `known` values, by the names of `takes`; None if one is missing."""
        if self.function is None or any(must and name not in known for name, must in self.takes.items()):
            return None
        return self.function(**{name: known[name] for name in self.takes if name in known})

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"

    def is_worse(self, start: float, end: float) -> bool:
        """Return whether a trained model is clearly worse in this figure than the model it started from, which has
        `start`."""
        if self.tolerance is None:
            return False
        tolerance = self.tolerance * abs(start) if self.relative else self.tolerance
        return (start - end if self.better == "higher" else end - start) > tolerance


FIGURES = {
    figure.name: figure
    for figure in (
        Figure(
            "rms", "rms error", 4, "lower", "error against the expected grey value", rms, 0.01, relative=True,
            label=_("error on your recordings"),
        ),
        Figure(
            "world", "rms error, other anatomies", 4, "lower", "the same error on anatomies of the simulator's own",
            tolerance=0.05, relative=True, label=_("error on other anatomies"),
        ),
        Figure("psnr", "PSNR dB", 2, "higher", "peak signal-to-noise ratio against the truth", psnr),
        Figure("ssim", "SSIM", 3, "higher", "structural similarity with the truth; 1 is best", ssim),
        Figure("flat", "flat rms", 4, "lower", "error where the truth is flat", flat),
        Figure(
            "repeat", "repeat", 4, "lower", "difference between the results for two speckle patterns", repeat,
            label=_("difference of two speckle draws"),
        ),
        Figure("kept", "slopes kept", 2, "", "share of the true slopes that is kept; 1 is best", kept_slopes),
        Figure("dice", "Dice", 3, "higher", "overlap of true objects with those found by Otsu's threshold", dice),
        Figure("edge", "edge width", 2, "", "width of edges relative to the truth; 1 is best"),
        Figure("points", "points kept", 2, "", "share of the height of points that is kept; 1 is best"),
        Figure("layers", "layers kept", 2, "", "share of the height of thin layers that is kept; 1 is best"),
        Figure("mean", "mean", 2, "", "mean of the tissue", mean),
        Figure("std", "std", 2, "", "standard deviation of the tissue", std),
        Figure("snr", "SNR", 2, "higher", "mean over standard deviation in even tissue; higher is smoother", snr),
        Figure("cnr", "CNR", 2, "higher", "contrast of lumen and tissue relative to their noise", cnr),
        Figure("gcnr", "gCNR", 3, "higher", "how well lumen and tissue can be distinguished; 1 is best", gcnr),
        Figure(
            "homogeneity", "homogeneity", 3, "higher", "similarity of neighboring pixels; higher is smoother",
            homogeneity, 0.005,
        ),
        Figure("structure", "structure", 3, "higher", "how well the coarse image is kept; 1 is best", structure, 0.005),
        Figure("holes", "holes", 4, "lower", "share of black pixels where tissue is; lower is better", holes, 0.001),
        Figure("milliseconds", "ms / frame", 1, "", "time"),
    )
}  # fmt: skip
TRUE_ERRORS = ("rms", "world")  # the only figures that judge a training if the truth is known
ERRORS = (*TRUE_ERRORS, "repeat")  # figures in grey values; they share a chart
JUDGED = tuple(name for name, figure in FIGURES.items() if figure.tolerance is not None)  # they judge a training


def measure(
    image: np.ndarray, output: np.ndarray, tissue: Any = None, lumen: Any = None, **known: Any
) -> dict[str, float]:
    """Return all figures of a frame (H, W) and its despeckled output that can be measured.

    tissue, lumen: masks (H, W) or slices, of the matched output; known: further arguments of figures (`Figure.takes`).
    """
    known |= {"image": image, "output": output}
    regions = {name: part for name, part in (("tissue", tissue), ("lumen", lumen)) if part is not None}
    if regions:
        mapped = match_mapping(image, output)
        known |= {name: mapped[part] for name, part in regions.items()}
    found = {name: figure.measure(known) for name, figure in FIGURES.items()}
    return {name: value for name, value in found.items() if value is not None}


def average(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over rows of figures, without figures that are NaN in all rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).extend([] if np.isnan(value) else [value])
    return {name: float(np.mean(some)) for name, some in values.items() if some}


def evaluate(
    frames: np.ndarray, outputs: np.ndarray, rois: dict | None = None, echogenicity: np.ndarray | None = None
) -> dict[str, float]:
    """Return the mean figures over frames (N, H, W) and their despeckled outputs, both on the 8-bit scale, without
    figures that cannot be measured in any frame.

    rois: {"frames": {"0": {"lumen": [x, y], "tissue": [x, y]}, ...}, "lumen_half_size": [x, y],
    "tissue_half_size": [x, y]}: boxes for gCNR, CNR and SNR, which are left out without them; echogenicity: (N, H, W)
    for PSNR and SSIM.
    """
    rows = []
    for index, (image, output) in enumerate(zip(frames, outputs, strict=True)):
        known: dict[str, Any] = {}
        if rois and str(index) in rois["frames"]:
            centers = rois["frames"][str(index)]
            known = {
                name: _box(image.shape, centers[name], rois[f"{name}_half_size"], name) for name in ("lumen", "tissue")
            }
        if echogenicity is not None:
            known["echogenicity"] = echogenicity[index]
        rows.append(measure(image, output, **known))
    return average(rows)


def _box(shape: Sequence[int], center: Sequence[int], half: Sequence[int], name: str) -> tuple[slice, slice]:
    (x, y), (wide, tall) = center, half
    if not (-wide < x < shape[1] + wide and -tall < y < shape[0] + tall):
        raise ValueError(f"The {name} box at {center} lies outside the image.")
    return slice(max(0, y - tall), y + tall), slice(max(0, x - wide), x + wide)
