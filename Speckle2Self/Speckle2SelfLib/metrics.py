"""Figures of merit as Documentation/method.md, section 5, defines them.

Images are on the 8-bit scale, 0 to 255, unless said.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr
from skimage.exposure import match_histograms
from skimage.feature import graycomatrix, graycoprops
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

BLUR = 3.0  # pixels; the scale at which input and output are compared


def reference(image: np.ndarray) -> np.ndarray:
    """The input (H, W) without its speckle as far as a blur can: what outputs are compared with."""
    return gaussian_filter(np.asarray(image, float), BLUR)


def matched(image: np.ndarray, output: np.ndarray) -> np.ndarray:
    """`output` with the histogram of the blurred input, so that a darker or flatter mapping alone gains nothing."""
    return match_histograms(np.asarray(output, float), reference(image))


def homogeneity(image: np.ndarray, output: np.ndarray) -> float:
    """Hom: co-occurrence homogeneity at distance 1, four directions, 64 grey levels, of the matched output."""
    levels = np.clip(matched(image, output) / 4, 0, 63).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    return float(graycoprops(graycomatrix(levels, [1], angles, 64, symmetric=True, normed=True), "homogeneity").mean())


def holes(image: np.ndarray, output: np.ndarray) -> float:
    """The share of pixels that are black (<= 2) in the output where the blurred input is not (> 10)."""
    return float(np.mean((np.asarray(output) <= 2) & (reference(image) > 10)))


def structure(image: np.ndarray, output: np.ndarray) -> float:
    """The rank correlation of the blurred output with the blurred input; 0 for an output that is constant, not a number
    for an image that is."""
    blurred, expected = reference(output).ravel(), reference(image).ravel()
    if np.ptp(image) == 0:
        return float("nan")
    if np.ptp(output) == 0:
        return 0.0
    return float(spearmanr(blurred, expected).statistic)


def gcnr(a: np.ndarray, b: np.ndarray, bins: int = 64) -> float:
    """Generalised contrast-to-noise ratio of two regions' values: 1 minus the overlap of their histograms.

    Rodriguez-Molares et al., IEEE TUFFC 2020. Any monotone mapping leaves it as it is, up to the bins.
    """
    a, b = np.ravel(a), np.ravel(b)
    span = min(a.min(), b.min()), max(a.max(), b.max()) + 1e-9
    return float(1 - np.minimum(np.histogram(a, bins, span)[0] / a.size, np.histogram(b, bins, span)[0] / b.size).sum())


def cnr(a: np.ndarray, b: np.ndarray) -> float:
    """Contrast-to-noise ratio of two regions' values: difference of means over the root of summed variances."""
    return float(abs(np.mean(a) - np.mean(b)) / (np.sqrt(np.var(a) + np.var(b)) + 1e-9))


def snr(values: np.ndarray) -> float:
    """Mean over standard deviation in homogeneous tissue; 1.91 for the envelope of fully developed speckle."""
    return float(np.mean(values) / (np.std(values) + 1e-9))


def enl(envelope: np.ndarray) -> float:
    """Equivalent number of looks: the square of `snr` on linear (not log-compressed) envelope."""
    return snr(envelope) ** 2


def to_truth(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`output` after the monotone mapping that brings it nearest to `truth` (isotonic regression), its shape kept."""
    order = np.argsort(output, axis=None, kind="stable")
    values, first, count = np.unique(np.ravel(output)[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(np.ravel(truth)[order].astype(float), first)
    fitted = isotonic_regression(sums / count, weights=count).x
    return fitted[np.searchsorted(values, np.ravel(output))].reshape(np.shape(output))


def psnr(output: np.ndarray, truth: np.ndarray, span: float = 255.0, inside=None) -> float:
    """Peak signal-to-noise ratio in dB against known echogenicity, after `to_truth`; of pixels `inside`, if given."""
    output, truth = (np.asarray(x, float) if inside is None else np.asarray(x, float)[inside] for x in (output, truth))
    return float(peak_signal_noise_ratio(truth, to_truth(output, truth), data_range=span))


def ssim(output: np.ndarray, truth: np.ndarray, span: float = 255.0, inside=None) -> float:
    """Structural similarity against known echogenicity, after `to_truth`; of pixels `inside`, if given."""
    truth = np.asarray(truth, float)
    inside = np.ones(truth.shape, bool) if inside is None else inside
    mapped = truth.copy()  # what is not counted is alike
    mapped[inside] = to_truth(np.asarray(output)[inside], truth[inside])
    if inside.all():
        return float(structural_similarity(truth, mapped, data_range=span))
    return float(structural_similarity(truth, mapped, data_range=span, full=True)[1][inside].mean())


def edge_width(image: np.ndarray, start, end, lines: int = 1) -> float:
    """The 10-90 % rise distance in pixels along the line from `start` to `end` (row, column) across a known edge.

    lines: neighbouring parallel lines, one pixel apart, that are averaged first.
    """
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = np.hypot(*(end - start))
    along = (end - start) / length
    across = np.array([-along[1], along[0]])
    t = np.linspace(0, length, max(2, int(np.ceil(length * 10)) + 1))
    offsets = np.arange(lines) - (lines - 1) / 2
    points = start[:, None, None] + along[:, None, None] * t + across[:, None, None] * offsets[:, None]
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
    """Of a static scene (N, H, W): the deviation over time of the tissue's mean, after / before. Below 1 is better."""
    deviations = [np.std([frame[tissue].mean() for frame in frames]) for frames in (after, before)]
    return float(deviations[0] / (deviations[1] + 1e-12))


def evaluate(frames: np.ndarray, outputs: np.ndarray, rois: dict | None = None) -> dict[str, float]:
    """The mean figures over frames (N, H, W) and their despeckled outputs, both on the 8-bit scale; without those
    that can be measured in none.

    rois: {"frames": {"0": {"lumen": [x, y], "tissue": [x, y]}, ...}, "lumen_half_size": [x, y],
    "tissue_half_size": [x, y]}: boxes for gCNR, CNR and SNR, which are left out without them.
    """
    rows: dict[str, list[float]] = {}
    for index, (image, output) in enumerate(zip(frames, outputs, strict=True)):
        figures = {f.__name__: f(image, output) for f in (homogeneity, holes, structure)}
        roi = (rois or {"frames": {}})["frames"].get(str(index))
        if roi:
            mapped = matched(image, output)
            lumen, tissue = (_box(mapped, roi[name], rois[f"{name}_half_size"], name) for name in ("lumen", "tissue"))
            figures |= {"gcnr": gcnr(lumen, tissue), "cnr": cnr(lumen, tissue), "snr": snr(tissue)}
        for name, value in figures.items():
            rows.setdefault(name, []).extend([value] if np.isfinite(value) else [])
    return {name: float(np.mean(values)) for name, values in rows.items() if values}


def _box(image, centre, half, name):
    (x, y), (wide, tall) = centre, half
    box = image[max(0, y - tall) : y + tall, max(0, x - wide) : x + wide]
    if box.size == 0:
        raise ValueError(f"The {name} box at {centre} lies outside the image.")
    return box
