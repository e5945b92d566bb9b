"""Find the pixels that are ultrasound: not margins, text, scales, logos, grey bars around it, or overlays on it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.measure import label as label_equal
from skimage.morphology import convex_hull_image

from .grey import HUE_NOISE, HUE_TOLERANCE, evenly, luminance
from .tint import Tint, find_tint

CROOKED = 0.2  # of an image's border bends by more than rounding does
SMALLEST = 64  # pixels of a part of the region; the inside of a letter has fewer


def box_of(region: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the bounding box of a region (H, W) bool, which has at least one pixel."""
    filled = (np.flatnonzero(region.any(axis)) for axis in (1, 0))  # called for each live frame: nothing slower
    rows, columns = (slice(int(lines[0]), int(lines[-1]) + 1) for lines in filled)
    return rows, columns


def fill_outside(frames: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return `frames` (N, H, W) with every pixel outside `inside` (H, W) bool replaced by the nearest one inside."""
    if inside.all() or not inside.any():
        return frames
    rows, columns = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return frames[:, rows, columns]


def grey(frames: np.ndarray, brightest_of_all: float | None = None, tint: Tint | None = None) -> np.ndarray:
    """Return which pixels of color frames (N, H, W, 3 or 4) have no hue, up to JPEG's blur, as bool (N, H, W).

    Pixels that are not finite have none. brightest_of_all: the largest value of the whole recording; None: of these.
    tint: a hue that does not count.
    """
    if tint is not None:
        scale = 255.0 if frames.dtype == np.uint8 else brightest_of_all
        frames, brightest_of_all = tint.remove(frames), scale
    red, green, blue = (frames[..., channel] for channel in range(3))  # many times faster than along the last axis
    brightest = np.maximum(np.maximum(red, green), blue).astype(np.float32)
    darkest = np.minimum(np.minimum(red, green), blue).astype(np.float32)
    if brightest_of_all is None:
        brightest_of_all = float(brightest.max(initial=0, where=np.isfinite(brightest)))
    scale = 255.0 if frames.dtype == np.uint8 else brightest_of_all
    with np.errstate(invalid="ignore"):
        return ~(brightest - darkest > HUE_TOLERANCE * brightest + HUE_NOISE * scale)


def detect(frames: np.ndarray, within: np.ndarray | None = None) -> np.ndarray:
    """Return the imaged region (H, W) bool of a recording (N, H, W[, C]).

    Light parts are divided into image and graphics: graphics are small and sharp, or ruled lines where nothing moves,
    or do not change while the rest of the recording does, or have a hue. The region is the convex hull of the
    image parts (the whole rectangle where they fill nine tenths of one), less the graphics in it and two pixels around
    them; dark cysts and shadows belong to it. All False where nothing looks like ultrasound, such as constant frames or
    a screen of windows.

    Args: within, (H, W) bool: search only there, for example where the file says that the image is.
    """
    chosen = frames[evenly(len(frames), 24)]
    grey_values, nothing = luminance(chosen), np.zeros(frames.shape[1:3], bool)
    if not np.isfinite(grey_values).any():
        return nothing
    grey_values = _darken_outside(grey_values, within)
    brightest, steady = grey_values.max(0), grey_values.mean(0)
    black, white = np.percentile(brightest, (1, 99.9))
    black = min(black, np.percentile(grey_values, 5))
    span = white - black
    if span <= 0:
        return nothing
    lit = brightest > black + max(0.02 * span, 1.5 if frames.dtype.kind != "f" else 0)
    uneven = ndimage.maximum_filter(steady, 3) - ndimage.minimum_filter(steady, 3)
    if ((uneven <= 0.004 * span) & (steady > black + 0.5 * span)).mean() > 0.2:  # windows of programs
        return nothing
    flat = (uneven == 0) & (steady > black + 0.1 * span)
    colored = ~grey(chosen, tint=find_tint(frames)).all(0) if frames.ndim == 4 else nothing
    if not lit.any() or (flat & ~colored).sum() > 0.4 * (lit & ~colored).sum():
        return nothing

    change = grey_values.std(0) / span
    moves = len(chosen) > 4 and np.median(change[lit]) > 0.01
    graphics = _find_strokes(grey_values[len(chosen) // 2] - black, span)
    if moves:
        graphics |= _find_strokes(brightest - black, span)
        # Light and still, while speckle changes by a fifth of its brightness and more, if the probe or tissue moves.
        level = (steady - black) / span
        frozen = change < 0.002
        light = lit & (level > 0.15)
        usual = np.median(change[light] / level[light]) if light.any() else 0
        graphics |= _remove_specks(frozen | (light & (change < min(0.05, usual / 4) * level)))
    graphics = lit & (ndimage.binary_dilation(graphics) | colored)
    image = _find_image_parts(lit & ~graphics, graphics, change if moves else None)
    if not image.any():
        return nothing
    region = _find_outline(image, lit & ~graphics)
    region &= ~_find_boxes(brightest, grey_values.min(0), region)
    if moves:  # tissue can be still by chance; graphics are frozen, or stand out from a dark ground
        graphics = _remove_specks(graphics & (frozen | (level > 2 * ndimage.uniform_filter(level, 13))), 2)
        for extreme in (brightest, grey_values.min(0)):  # over time: what moves, as clocks do, and what stands still
            graphics |= _find_drawings(np.where(colored, 0, np.maximum(extreme - black, 0)), span)
    else:
        still = np.where(colored, 0, steady - black)
        found = np.pad(_find_drawings(still, span) | _find_ruled_lines(still, span), 8)
        graphics |= ndimage.binary_closing(found, np.ones((1, 13)))[8:-8, 8:-8]  # points and hyphens between letters
    region = _remove_specks(region & ~ndimage.binary_dilation(graphics, iterations=2), SMALLEST)
    return region if within is None else region & within


def _darken_outside(grey_values: np.ndarray, within: np.ndarray | None) -> np.ndarray:
    """Return grey values (N, H, W) in which pixels that are not finite or not `within` are as dark as the darkest."""
    counts = np.isfinite(grey_values)
    darkest = grey_values.min(where=counts, initial=np.inf)
    counts &= True if within is None else within
    return grey_values if counts.all() else np.where(counts, grey_values, darkest)


def _find_outline(image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Return the region (H, W) bool that holds the parts of an image: their hull, or its rectangle where they nearly
    fill it, without what is outside between them; `tissue`, bool (H, W): light, and no graphics."""
    region = convex_hull_image(image, offset_coordinates=False)
    box = box_of(region)
    if region[box].mean() > 0.9:
        region[box] = True
    return region & (~_find_exterior(image, region) | tissue)


def _find_exterior(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return what lies (H, W) bool between the border of a region and the light parts of the image: next to sides that
    lean, above the arc of a curved probe, between two images. There the first light pixels lie on lines and arcs, side
    by side; at the rim of a shadow, speckle makes them jump, and in water there are few."""
    exterior, region = np.zeros(image.shape, bool), region.copy()
    closed = ndimage.binary_closing(np.pad(image, 2), np.ones((3, 3)))[2:-2, 2:-2]
    for turn in range(4):  # seen from above, from the right, from below, from the left
        inside, light, border = (np.rot90(mask, turn) for mask in (region, image, closed))
        start, end, first = _first(inside), _first(light & inside), _first(border & inside)
        away = ndimage.binary_closing(np.pad((end > start) & inside.any(0), 2), np.ones(4))[2:-2]
        runs, count = ndimage.label(ndimage.binary_opening(away, np.ones(4)))
        bends = np.abs(np.diff(first, 2, prepend=first[0], append=first[-1])) > 1
        rows = np.arange(len(inside))[:, None]
        between = np.where((rows >= start) & (rows < end), runs, 0)
        beside = np.where(between == 0, ndimage.maximum_filter(between, 3, mode="constant"), 0) * inside
        every = np.arange(count + 1)
        width, contact = np.bincount(runs, minlength=count + 1), ndimage.mean(border, beside, every)
        straight = (ndimage.mean(bends, runs, every) < CROOKED) & (contact > 0.5)
        straight |= (np.bincount(between.ravel(), minlength=count + 1) > 2 * width**2) & (contact > 0.85)  # a gap
        straight[0] = False
        np.rot90(exterior, turn)[...] |= straight[between]
        region &= ~exterior
    return exterior


def _first(mask: np.ndarray) -> np.ndarray:
    """Return the first row of each column where `mask` (H, W) is True; H where it never is."""
    return np.where(mask.any(0), mask.argmax(0), len(mask))


def _find_boxes(brightest: np.ndarray, darkest: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Return filled rectangles (H, W) bool that never change, as over a patient's name. No cyst and no shadow is one.

    Args: the largest and the smallest value (H, W) of each pixel over time; within, bool (H, W): where to search.
    """
    boxes = np.zeros(brightest.shape, bool)
    constant = ndimage.maximum_filter(brightest, 8) == ndimage.minimum_filter(darkest, 8)
    wide = ndimage.maximum_filter(constant, 8, origin=-1, mode="constant")
    labels = label_equal(np.where(wide & within, brightest - darkest.min() + 1, 0), background=0, connectivity=1)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        part = labels[box] == label
        if part.size < 200 or part.mean() < 0.5 or ndimage.binary_fill_holes(part).mean() < 0.97:  # may hold text
            continue
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        same = (brightest[around] == brightest[box][part][0]).sum() - (brightest[box] == brightest[box][part][0]).sum()
        if same < 0.2 * (brightest[around].size - part.size):  # it ends there
            boxes[box] = True
    return boxes


def _remove_specks(mask: np.ndarray, smallest: int = 6) -> np.ndarray:
    """Return `mask` (H, W) without smaller components: in tissue that hardly moves, some pixels are still by chance."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return mask & (np.bincount(labels.ravel()) >= smallest)[labels]


def _keep_labels(labels: np.ndarray, these: np.ndarray) -> np.ndarray:
    """Return labels (H, W) of only these parts, renumbered. Speckle makes thousands, and most can be ruled out without
    looking at their shape."""
    these = these & (np.arange(len(these)) > 0)
    return np.where(these, np.cumsum(these), 0)[labels]


def _find_strokes(values: np.ndarray, span: float) -> np.ndarray:
    """Return small, bright, sharp parts (H, W) on a dark ground: letters, ticks and marks, even if they flicker."""
    strokes = np.zeros(values.shape, bool)
    jump = np.maximum(np.abs(np.diff(values, axis=0, prepend=0)), np.abs(np.diff(values, axis=1, prepend=0)))
    labels, count = ndimage.label(values > 0.3 * span, np.ones((3, 3)))
    tallest, widest = (0.07 * n for n in values.shape)
    dark = values < 0.08 * span
    every = np.arange(count + 1)
    peaks = ndimage.maximum(values, labels, every)
    near_dark = ndimage.maximum(ndimage.maximum_filter(dark, 7, mode="constant"), labels, every)
    ground = labels == 0
    labels = _keep_labels(labels, (peaks > 0.45 * span) & near_dark.astype(bool))
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        if box[0].stop - box[0].start > tallest or box[1].stop - box[1].start > widest:
            continue
        wide = tuple(slice(max(0, b.start - 3), b.stop + 3) for b in box)
        part = labels[wide] == label
        bright = np.percentile(values[wide][part], 95)
        if bright <= 0.45 * span or np.percentile(jump[wide][part], 85) <= 0.4 * bright:
            continue
        ring = ndimage.binary_dilation(part, iterations=3) & ground[wide]
        if not ring.any() or np.median(values[wide][ring]) < 0.08 * span:
            strokes[wide] |= part
    return strokes


def _find_drawings(values: np.ndarray, span: float) -> np.ndarray:
    """Return letters, marks, dots, lines and frames (H, W) on tissue: of one grey value or bright, and thin or brighter
    than every pixel around them.

    Speckle and layers are not: they fade over the pulse's length.
    """
    drawn = np.zeros(values.shape, bool)
    tallest, widest = (max(12, 0.07 * n) for n in values.shape)
    falls = (values - ndimage.minimum_filter(values, 3)).ravel()
    equal = np.where(values > 0.4 * span, np.round(40 * values / span), 0).astype(int)
    for parts, frames in ((equal, True), ((values > 0.7 * span).astype(int), False)):
        labels = label_equal(parts, background=0, connectivity=2)
        if frames:
            drawn |= _end_abruptly(values, labels, 0.5 * span)
        areas, sums, drops = (np.bincount(labels.ravel(), x) for x in (None, values.ravel(), falls))
        labels = _keep_labels(labels, (areas >= 6) & (drops > 0.3 * sums))
        for label, box in enumerate(ndimage.find_objects(labels), 1):
            height, width = (side.stop - side.start for side in box)
            small = min(height, width) >= 4 and height <= tallest and width <= widest
            wide = tuple(slice(max(0, b.start - 1), b.stop + 1) for b in box)
            part = labels[wide] == label
            area = part.sum()
            letter = small and area <= 0.8 * height * width
            if not letter and not (frames and max(height, width) >= 20 and area <= 4 * (height + width)):
                continue
            light = np.median(values[wide][part])
            ring = values[wide][ndimage.binary_dilation(part, np.ones((3, 3))) & ~part]
            if np.median(ring) < 0.55 * light and np.quantile(ring, 0.8) < 0.8 * light:
                drawn[wide] |= part
    return drawn


def _end_abruptly(values: np.ndarray, labels: np.ndarray, bright: float) -> np.ndarray:
    """Return the parts (H, W) bool brighter than `bright` whose neighbors are all darker by a quarter, and the others
    whose neighbors are all darker by half; of tissue, hardly one in a million."""
    around, beside = np.pad(values, 1), np.pad(labels, 1, constant_values=-1)
    brightest = np.zeros_like(values)
    for row, column in ((y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)):
        window = np.s_[row : row + values.shape[0], column : column + values.shape[1]]
        np.maximum(brightest, around[window], out=brightest, where=beside[window] != labels)
    every = np.arange(labels.max() + 1)
    level = ndimage.mean(values, labels, every)
    abrupt = ndimage.maximum(brightest, labels, every) < np.where(level > bright, 0.75, 0.5) * level
    abrupt[0] = False
    single = np.bincount(labels.ravel(), minlength=len(every)) == 1
    for noise in ([abrupt.copy()] if abrupt.sum() > 0.03 * len(every) else []) + [abrupt & single]:
        alike = np.bincount((20 * level[noise] / bright).astype(int), minlength=1)
        if alike.max() < 0.25 * alike.sum():
            abrupt &= ~noise  # from pixel to pixel: graphics have few grey values
    return abrupt[labels]


def _find_ruled_lines(values: np.ndarray, span: float) -> np.ndarray:
    """Return lines (H, W) of even brightness along rows or columns, as around a Doppler window, and grey-scale bars.

    They are up to three pixels wide and at least 24 (columns) or 40 (rows) long, and may be blurred by scaling or
    compression. Fascia can be as straight; but unlike fascia, they are equally bright all along and end abruptly.
    """
    ruled = np.zeros(values.shape, bool)
    for axis, length, uneven in ((0, 24, 0.06), (1, 40, 0.025)):
        width, pad, line = values.shape[1 - axis], [(0, 0), (0, 0)], [1, 1]
        pad[1 - axis], line[axis] = (3, 3), length
        padded = np.pad(values, pad, mode="edge")
        near = [padded.take(range(at, at + width), 1 - axis) for at in range(7)]  # from 3 pixels before to 3 after
        steps = np.abs(np.diff(near, axis=0))
        beside = np.maximum(np.minimum(near[0], near[1]), np.minimum(near[5], near[6]))
        sharp = np.minimum(steps[:3].max(0), steps[3:].max(0)) > 0.75 * (values - beside)
        ridge = (values - beside > 0.12 * span) & (values > 0.35 * span)
        mean, square = (ndimage.uniform_filter1d(x, length, axis) for x in (values, values**2))
        even = _erode(ridge, line) & (square - mean**2 < (uneven * span) ** 2)
        even &= ndimage.uniform_filter1d(sharp.astype(np.float32), length, axis) > 0.7
        line[axis] = 3
        ruled |= ndimage.binary_propagation(even, np.ones(line), ridge)
        line[axis], line[1 - axis] = 24, 6  # a bar: over so many pixels all that are side by side are equal
        equal = np.abs(np.diff(values, axis=1 - axis, append=np.inf)) <= 0.004 * span
        bars = _erode(equal & (values > 0.1 * span), line)
        ruled |= ndimage.maximum_filter(bars, line, mode="constant", origin=[n % 2 - 1 for n in line])
    return ruled


def _erode(mask: np.ndarray, size: list[int]) -> np.ndarray:
    """Erode (H, W) bool by a rectangle, in the same time whatever its size."""
    return ndimage.minimum_filter(mask, size, mode="constant")


def _find_image_parts(lit: np.ndarray, graphics: np.ndarray, change: np.ndarray | None) -> np.ndarray:
    """Return the light components (H, W) bool that are image: no specks, no filled bars, nothing low next to graphics
    (the rest of a line of text), and where the recording moves (`change`, the deviation over time), large or moving."""
    height, width = lit.shape
    lines = ndimage.binary_dilation(graphics, np.ones((1, 2 * (width // 30) + 1)))
    joined = ndimage.binary_closing(np.pad(lit, 4), iterations=2)[4:-4, 4:-4] | lit
    # Rows of ticks are thin; without motion, only thin bridges distinguish a toolbar from the image above it.
    thin = 3 if change is None else 1
    joined = ndimage.binary_opening(np.pad(joined, 4, mode="edge"), iterations=thin)[4:-4, 4:-4]
    lit = lit & joined
    labels, count = ndimage.label(joined, np.ones((3, 3)))
    image = np.zeros(count + 1, bool)
    areas = np.bincount(labels[lit], minlength=count + 1)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        short, long = sorted(side.stop - side.start for side in box)
        if long > 4 * short and areas[label] > 0.6 * short * long:
            continue
        part = lit[box] & (labels[box] == label)
        if box[0].stop - box[0].start < 0.07 * height and (part & lines[box]).any():
            continue
        if change is None:
            image[label] = areas[label] >= 0.1 * areas.max()
        elif areas[label] >= max(12, 0.004 * areas.max()):
            image[label] = areas[label] > 0.3 * areas.max() or np.median(change[box][part]) > 0.04
    return image[labels] & lit
