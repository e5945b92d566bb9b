"""Find the pixels that show ultrasound, without margins, text, scales, logos and grey bars around the image, and
overlays on it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.measure import label as label_equal
from skimage.morphology import convex_hull_image

from .detector import graphics_over_time, widen
from .grey import HUE_NOISE, HUE_TOLERANCE, evenly_spaced, luminance
from .tint import Tint, find_tint

LINE = 9  # pixels; the largest thickness of a line across an image
EVEN = 5  # pixels; speckle never has one value over this many rows and columns
WATER = 0.3  # fraction of the hull; if less of it is light, the image shows a phantom in water, not tissue
MARK = 0.25  # fraction of the span of grey values; graphics drawn on a cyst are brighter
GAP = 4  # pixels; the smallest width of black areas outside the image
AROUND = 2  # pixels around graphics and colors that are excluded as well: fringes, shadows, JPEG's blur
RIM = 5  # pixels; the largest width of graphics at the edge of an image, and the distance to compare them over
SMALLEST = 64  # pixels of a part of the region; the inside of a letter has fewer


def box_of(region: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the bounding box of a region (H, W) bool, which has at least one pixel."""
    filled = (np.flatnonzero(region.any(axis)) for axis in (1, 0))  # fast, because it is called for each live frame
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

    Pixels that are not finite count as such. brightest_of_all: the largest value of the whole recording; None: that of
    these frames. tint: a hue that does not count.
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

    Light parts are divided into image and graphics, which the network of `detector.py` finds, or which have a hue. The
    region is the convex hull of the image parts (the whole rectangle where they fill nine tenths of one), less black
    areas connected to the surroundings, and less still graphics and two pixels around them; dark cysts belong to it.
    All False if nothing looks like ultrasound, as in constant frames or on a screen of windows.

    Args: within, (H, W) bool: search only there, for example where the file says that the image is.
    """
    chosen = frames[evenly_spaced(len(frames), 24)]
    grey_values, nothing = luminance(chosen), np.zeros(frames.shape[1:3], bool)
    if not np.isfinite(grey_values).any():
        return nothing
    grey_values = _darken_outside(grey_values, within)
    brightest, steady, darkest = grey_values.max(0), grey_values.mean(0), grey_values.min(0)
    black, white = np.percentile(brightest, (1, 99.9))
    black = min(black, np.percentile(grey_values, 5))
    span = white - black
    if span <= 0:
        return nothing
    rounding = 1.5 if frames.dtype.kind != "f" else 0
    dimmest, blackest = (black + max(share * span, rounding) for share in (0.02, 0.008))  # of what is lit, what is dark
    lit = brightest > dimmest
    uneven = ndimage.maximum_filter(steady, 3) - ndimage.minimum_filter(steady, 3)
    if ((uneven <= 0.004 * span) & (steady > black + 0.5 * span)).mean() > 0.2:  # windows of programs
        return nothing
    flat = (uneven == 0) & (steady > black + 0.1 * span)
    colored = ~grey(chosen, tint=find_tint(frames)).all(0) if frames.ndim == 4 else nothing
    if not lit.any() or (flat & ~colored).sum() > 0.4 * (lit & ~colored).sum():
        return nothing

    some = grey_values[evenly_spaced(len(chosen), 12)]
    standing, moving, certain = graphics_over_time(some)
    standing &= ~_find_rims(standing, steady - black, lit)
    for found, values in zip(moving, some, strict=True):
        found &= ~_find_rims(found, values - black, lit)
    even = flat & (ndimage.maximum_filter(brightest, EVEN) == ndimage.minimum_filter(darkest, EVEN))
    standing |= ndimage.binary_dilation(even & (brightest < grey_values.max()), np.ones((EVEN, EVEN)))  # panels
    below = np.where(moving.any(0), np.where(moving, -np.inf, some).max(0), brightest)  # without what moves
    tissue = (below > dimmest) & ~standing & ~colored
    change = grey_values.std(0) / span
    moves = len(chosen) > 4 and tissue.any() and np.median(change[tissue]) > 0.01
    if moves:
        still, distinct = _find_still(change, (steady - black) / span, lit)
        tissue, standing = tissue & ~still, standing | distinct
    tissue |= standing & ndimage.minimum_filter(ndimage.maximum_filter(tissue, LINE), LINE)  # no line divides it
    image = _find_image_parts(tissue, lit & (standing | moving.any(0)), change if moves else None)
    if not image.any():
        return nothing
    dark = below <= blackest
    region = _find_outline(image, lit, dark | standing, brightest == brightest.min())
    if lit[region].mean() >= WATER:  # in water, everything dark would count as a cyst
        marks = certain & (brightest > black + MARK * span)
        cysts, grounds = _divide_dark((brightest <= blackest) & region, marks)
        standing = (standing & (marks | ~cysts)) | grounds
    region &= ~_find_boxes(brightest, darkest, region)
    region = _remove_specks(region & ~ndimage.binary_dilation(standing | (lit & colored), iterations=AROUND), SMALLEST)
    return region if within is None else region & within


def _find_still(change: np.ndarray, level: np.ndarray, lit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that do not change while the recording moves, bool (H, W), and those of them that are certainly
    graphics: frozen, or standing out from a dark ground; tissue can be still by chance.

    Args: the standard deviation over time and the mean, as shares of the span of grey values; lit, bool (H, W).
    """
    # Light and still, while speckle changes by a fifth of its brightness and more, if the probe or tissue moves.
    frozen, light = change < 0.002, lit & (level > 0.15)
    usual = np.median(change[light] / level[light]) if light.any() else 0
    still = lit & _remove_specks(frozen | (light & (change < min(0.05, usual / 4) * level)))
    return still, _remove_specks(still & (frozen | (level > 2 * ndimage.uniform_filter(level, 13))), 2)


def _darken_outside(grey_values: np.ndarray, within: np.ndarray | None) -> np.ndarray:
    """Return grey values (N, H, W) in which pixels that are not finite or not `within` are as dark as the darkest."""
    counts = np.isfinite(grey_values)
    darkest = grey_values.min(where=counts, initial=np.inf)
    counts &= True if within is None else within
    return grey_values if counts.all() else np.where(counts, grey_values, darkest)


def _find_outline(image: np.ndarray, lit: np.ndarray, black: np.ndarray, blackest: np.ndarray) -> np.ndarray:
    """Return the region (H, W) bool that holds the parts of an image: their hull, or its rectangle where they nearly
    fill it, without black areas (or graphics) connected to the surroundings: next to oblique sides, above the arc of a
    curved probe, between two images. Where nearly all is black, only the `blackest` of these areas are left out, or
    none if little would remain, as of wires in water."""
    region = convex_hull_image(image, offset_coordinates=False)
    box = box_of(region)
    if region[box].mean() > 0.9:
        region[box] = True
    if lit[region].mean() >= WATER:
        return _leave_out(region, black)
    rest = _leave_out(region, blackest)
    return rest if rest.sum() >= WATER * region.sum() else region


def _leave_out(region: np.ndarray, black: np.ndarray) -> np.ndarray:
    """Return a region without the black areas at its edge, all (H, W) bool, unless they are narrower than GAP."""
    wide = ndimage.binary_opening(np.pad(black | ~region, GAP, constant_values=True), np.ones((GAP, GAP)))
    labels, _ = ndimage.label(wide)
    outside = (labels == labels[0, 0])[GAP:-GAP, GAP:-GAP]
    return region & ~ndimage.binary_dilation(outside, iterations=GAP, mask=black | outside)


def _find_rims(found: np.ndarray, level: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Return which of the graphics found, (H, W) bool, are the edge of an image: narrow, black on one side, and where
    lit, no brighter than the tissue next to them. Args: level, above black (H, W); lit (H, W) bool."""
    labels, count = ndimage.label(found, np.ones((3, 3)))
    rims = np.zeros(count + 1, bool)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        around = tuple(slice(max(0, side.start - RIM), side.stop + RIM) for side in box)
        part = labels[around] == label
        tissue = lit[around] & ~found[around]
        near = widen(tissue, RIM)
        ring = widen(part, RIM) & ~found[around]
        on, beside = part & lit[around], ring & tissue
        if (part & ~near).any() or on.sum() > 0.75 * part.sum() or not 0.25 < beside.sum() / max(1, ring.sum()) < 0.75:
            continue
        rims[label] = not on.any() or level[around][on].mean() < level[around][beside].mean()
    return rims[labels]


def _divide_dark(dark: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which black parts of an image are cysts, with their borders, and which the ground of text, (H, W) bool.

    With the letters on it, the ground of text is a rectangle, and a cyst is not. Args: marks, (H, W) bool: bright
    graphics.
    """
    labels, count = ndimage.label(ndimage.binary_opening(dark, np.ones((GAP, GAP))))
    crooked, grounds = np.zeros(count + 1, bool), np.zeros_like(dark)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        crooked[label] = ((labels[box] == label) | marks[box]).mean() < 0.85
        if not crooked[label] and marks[box].any():
            grounds[box] |= dark[box]  # also narrow parts between letters
    return ndimage.binary_dilation(crooked[labels], iterations=GAP), grounds


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
        if part.size < 200 or part.mean() < 0.5 or ndimage.binary_fill_holes(part).mean() < 0.97:  # it may hold text
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
