"""Simulate the graphics that scanners draw on and next to their images, with exact masks, for training.

Text, calipers, measuring lines, outlines, rulers, focus marks, grey bars, traces, clocks, needle guides, boxes, logos
and blacked-out rectangles; static, or moving over a cine. The fonts are those bundled with matplotlib and Pillow.
"""

from __future__ import annotations

import io
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .system import InputError

FONTS = (  # fonts for training; "bitmap" is Pillow's own
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral",
    "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "bitmap",
)  # fmt: skip
HELD_OUT_FONTS = ("Aileron", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "cmtt10")  # only for tests
WORDS = (
    "LIVER", "Kidney", "GB", "CBD", "RT", "LT LONG", "TRANS", "Thyroid", "AO", "LV", "IVC", "Dist", "Area", "Circ",
    "Vol", "BPD", "FL", "EFW", "GA", "HR", "FR", "MI", "TIS", "TIB", "Gn", "DR", "C", "Frq", "Depth", "Map", "Persist",
    "2D", "THI", "Res", "PRF", "WF", "PWR", "Freeze", "Clear", "Carotid", "Abdomen", "C5-1", "L12-3", "General", "Med",
)  # fmt: skip
UNITS = ("cm", "mm", "cm/s", "m/s", "dB", "Hz", "MHz", "kHz", "%", "bpm", "cm2", "ml", "fps", "")
SIZES = (6, 26)  # pixels of letters
LAYERS = {  # how a drawing becomes pixels: samples per pixel, and how they are combined
    "aliased": (1.0, "NEAREST"), "smooth": (3.0, "BOX"), "enlarged": (0.5, "NEAREST"), "rescaled": (0.7, "BILINEAR"),
}  # fmt: skip
Pen = Callable[["Canvas", float], None]  # draws one graphic at a time in [0, 1] of the cine


class Drawn(NamedTuple):
    """Frames with graphics, in the shape and type of the frames without, and the mask of the graphics, bool (N, H,
    W)."""

    frames: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Graphic:
    """A graphic, and how to draw it."""

    pen: Pen
    layer: str  # one of LAYERS
    level: float  # grey value in [0, 1]
    ground: str | None = None  # "shadow", "halo" or "box" below it
    ground_level: float = 0.0
    ground_opacity: float = 1.0
    moving: bool = False


class Canvas:
    """Ink in [0, 255] on samples, drawn in the coordinates (x, y) of the frame's pixels."""

    def __init__(self, size: tuple[int, int], scale: float, smooth: bool):
        from PIL import Image, ImageDraw

        self.size, self.scale = size, scale
        self.image = Image.new("L", (max(1, round(size[1] * scale)), max(1, round(size[0] * scale))))
        self.draw = ImageDraw.Draw(self.image)
        self.draw.fontmode = "L" if smooth else "1"

    def points(self, points: ArrayLike) -> list[tuple[float, float]]:
        return [(float(x) * self.scale, float(y) * self.scale) for x, y in np.asarray(points)]

    def line(self, points: ArrayLike, width: float = 1, ink: int = 255) -> None:
        self.draw.line(self.points(points), ink, max(1, round(width * self.scale)))

    def polygon(self, points: ArrayLike, ink: int = 255) -> None:
        self.draw.polygon(self.points(points), ink)

    def disc(self, center: ArrayLike, radius: float, ink: int = 255) -> None:
        x, y = np.asarray(center)
        self.draw.ellipse(self.points([(x - radius, y - radius), (x + radius, y + radius)]), ink)

    def box(self, corner: ArrayLike, size: ArrayLike, ink: int = 255) -> None:
        (x, y), (right, below) = self.points(np.array([corner, np.add(corner, size)]))
        self.draw.rectangle((x, y, max(x, right - 1), max(y, below - 1)), ink)

    def text(self, at: ArrayLike, words: str, font: str, size: float) -> None:
        self.draw.multiline_text(
            self.points(np.array([at]))[0], words, 255, _font(font, max(5, round(size * self.scale))), spacing=2
        )


def draw_graphics(
    frames: np.ndarray,
    rng: np.random.Generator,
    held_out: bool = False,
    kinds: tuple[str, ...] | None = None,
    count: int | None = None,
    jpeg: float = 0.3,
) -> Drawn:
    """Draw what scanners draw on a frame (H, W) or a cine (N, H, W), uint8 or floating point in [0, 1].

    Args:
        rng: source of all random choices.
        held_out: use the fonts that training never sees.
        kinds: names in KINDS; None: all, as often as scanners show them.
        count: number of graphics; None: depends on the frame's size.
        jpeg: share of recordings that are compressed afterwards; the mask shows what was drawn before.

    Returns the frames and the mask, of the frames' shape. Raises InputError without matplotlib, whose fonts are used.
    """
    stack = frames if frames.ndim == 3 else frames[None]
    if stack.ndim != 3 or stack.dtype.kind not in "uf" or (stack.dtype.kind == "u" and stack.dtype != np.uint8):
        raise InputError(f"Graphics are drawn on frames (H, W) or (N, H, W), uint8 or in [0, 1], not {frames.dtype}.")
    size = stack.shape[1:]
    if count is None:
        count = 1 + rng.poisson(min(1.5 * stack[0].size / 128**2, 14))
    chances = np.array([KINDS[kind][1] for kind in kinds or KINDS])
    chosen = rng.choice(list(kinds or KINDS), count, p=chances / chances.sum())
    fonts = HELD_OUT_FONTS if held_out else FONTS
    house = _House(rng, size, str(rng.choice(fonts)), float(rng.uniform(*SIZES)))  # most scanners have a single style
    graphics = [KINDS[kind][0](house if rng.random() < 0.7 else house.other(str(rng.choice(fonts)))) for kind in chosen]
    values = stack.astype(np.float32) / (255 if stack.dtype == np.uint8 else 1)
    still = [graphic for graphic in graphics if not graphic.moving]
    moving = [graphic for graphic in graphics if graphic.moving]
    mask = np.zeros(stack.shape, bool)
    ink, cover = _render(still, size, 0.0)
    for number, frame in enumerate(values):
        time = number / max(1, len(values) - 1)
        above, over = _render(moving, size, time) if moving else (0, np.zeros(size, np.float32))
        frame[:] = (frame * (1 - cover) + ink) * (1 - over) + above
        mask[number] = (cover > 0) | (over > 0)
    if rng.random() < jpeg:
        values = _compress(values, int(rng.integers(45, 96)))
    values = np.round(255 * values) if stack.dtype == np.uint8 else values
    return Drawn(values.astype(stack.dtype).reshape(frames.shape), mask.reshape(frames.shape))


def _render(graphics: list[Graphic], size: tuple[int, int], time: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the brightness and the coverage of graphics, both float32 (H, W) in [0, 1]."""
    ink, cover = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for graphic in graphics:
        alpha = _alpha(graphic, size, time)
        if graphic.ground:
            below = _ground(graphic.ground, alpha) * np.float32(graphic.ground_opacity)
            ink = ink * (1 - below) + graphic.ground_level * below
            cover = 1 - (1 - cover) * (1 - below)
        ink = ink * (1 - alpha) + graphic.level * alpha
        cover = 1 - (1 - cover) * (1 - alpha)
    return ink, cover


def _alpha(graphic: Graphic, size: tuple[int, int], time: float) -> np.ndarray:
    from PIL import Image

    scale, method = LAYERS[graphic.layer]
    canvas = Canvas(size, scale, graphic.layer != "aliased" and graphic.layer != "enlarged")
    graphic.pen(canvas, time)
    image = canvas.image
    if scale != 1:
        image = image.resize(size[::-1], getattr(Image.Resampling, method))
    return np.asarray(image, np.float32) / np.float32(255)


def _ground(kind: str, alpha: np.ndarray) -> np.ndarray:
    """Return what lies below a graphic, float32 (H, W) in [0, 1]: its shadow, an outline, or a filled rectangle."""
    from scipy import ndimage

    if kind == "shadow":
        return np.pad(alpha, ((1, 0), (1, 0)))[:-1, :-1]
    if kind == "halo":
        return ndimage.maximum_filter(alpha, 3)
    ground = np.zeros_like(alpha)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if len(rows):
        ground[max(0, rows[0] - 2) : rows[-1] + 3, max(0, columns[0] - 3) : columns[-1] + 4] = 1
    return ground


def _compress(values: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    frames = []
    for frame in values:
        file = io.BytesIO()
        Image.fromarray(np.round(255 * frame.clip(0, 1)).astype(np.uint8)).save(file, "JPEG", quality=quality)
        frames.append(np.asarray(Image.open(file), np.float32) / 255)
    return np.stack(frames)


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> Any:
    from PIL import ImageFont

    if name == "bitmap":
        return ImageFont.load_default_imagefont() if hasattr(ImageFont, "load_default_imagefont") else None
    if name == "Aileron":
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(_font_folder() / f"{name}.ttf"), size)


@lru_cache(maxsize=1)
def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("Simulated graphics need the fonts of matplotlib: install matplotlib.") from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


class _House:
    """The style of one scanner (font, sizes, grey values), and its random numbers."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], font: str, letters: float):
        self.rng, self.size, self.font, self.letters = rng, size, font, letters
        self.layer = str(rng.choice(list(LAYERS), p=(0.35, 0.4, 0.1, 0.15)))
        self.level = float(
            rng.choice([1.0, 1.0, 0.94, 0.82, 0.7, rng.uniform(0.4, 1)] if rng.random() < 0.96 else [1.0])
        )

    def other(self, font: str) -> _House:
        return _House(self.rng, self.size, font, float(self.rng.uniform(*SIZES)))

    def place(self, beyond: float = 0.05) -> np.ndarray:
        """Return a point (x, y), perhaps a little outside the frame."""
        return self.rng.uniform(-beyond, 1 + beyond, 2) * self.size[::-1]

    def graphic(
        self, pen: Pen, grounds: float = 0.35, moving: bool = False, boxed: bool = False, **given: Any
    ) -> Graphic:
        kinds = ["shadow", "halo", "box"] if boxed else ["shadow", "halo"]
        ground = str(self.rng.choice(kinds)) if self.rng.random() < grounds else None
        level = float(self.rng.choice([0.0, 0.1, self.rng.uniform(0, 0.35)]))
        opacity = float(self.rng.choice([1.0, self.rng.uniform(0.4, 1)]))
        chosen: dict[str, Any] = {
            "layer": self.layer, "level": self.level, "ground": ground, "ground_level": min(level, self.level / 2),
            "ground_opacity": opacity, "moving": moving,
        }  # fmt: skip
        return Graphic(pen, **chosen | given)

    def number(self) -> str:
        return f"{self.rng.uniform(0, 10 ** self.rng.integers(1, 4)):.{self.rng.integers(0, 3)}f}"

    def words(self) -> str:
        rng = self.rng
        kind = rng.integers(6)
        if kind == 0:
            return str(rng.choice(WORDS))
        if kind == 1:
            return f"{rng.choice(WORDS)}{rng.choice([' ', ': ', '  '])}{self.number()} {rng.choice(UNITS)}".strip()
        if kind == 2:
            return f"{rng.choice(['', '-', '+'])}{self.number()} {rng.choice(UNITS)}".strip()
        if kind == 3:
            month, day, year = rng.integers((1, 1, 1998), (13, 29, 2030))
            return f"{month:02d}/{day:02d}/{year}" if rng.random() < 0.5 else f"{day:02d}.{month:02d}.{year}"
        if kind == 4:
            return " ".join(str(word) for word in rng.choice(WORDS, rng.integers(2, 4)))
        return "".join(rng.choice(list(string.ascii_letters + string.digits + ".-:#,"), rng.integers(1, 12)))

    def stroke(self) -> float:
        return float(self.rng.choice([1, 1, 1, 2, 2, 3]))

    def pattern(self) -> tuple[float, float, float]:
        """Draw a line's style: pixels drawn, pixels between (0: solid), thickness."""
        drawn = 1 if self.rng.random() < 0.67 else self.rng.integers(2, 9)
        between = 0 if self.rng.random() < 0.33 else self.rng.integers(2, 9)
        return float(drawn), float(between), self.stroke()


def _trace(canvas: Canvas, points: np.ndarray, pattern: tuple[float, float, float]) -> None:
    """Draw a line through points (K, 2), solid, dashed or dotted."""
    drawn, between, width = pattern
    if not between:
        canvas.line(points, width)
        return
    steps = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0], np.cumsum(steps)])
    for start in np.arange(0, along[-1], drawn + between + width - 1):
        ends = np.array([start, min(start + drawn - 1, along[-1])])
        x, y = (np.interp(ends, along, axis) for axis in points.T)
        if drawn <= 1:
            corner = np.round([x[0], y[0]])
            canvas.box(corner, (width, width))
        else:
            canvas.line(np.stack([x, y], 1), width)


def _mark(canvas: Canvas, at: np.ndarray, kind: str, reach: float, width: float) -> None:
    """Draw a caliper's end (x, y): "+", "x", "o", "dot", "square", "T" or "arrow", `reach` pixels to each side."""
    x, y = np.round(at)
    left, right, above, below = x - reach, x + reach, y - reach, y + reach
    if kind in "+T":
        canvas.line([(left, y), (right, y)], width)
        canvas.line([(x, above if kind == "+" else y), (x, below)], width)
    elif kind == "x":
        canvas.line([(left, above), (right, below)], width)
        canvas.line([(left, below), (right, above)], width)
    elif kind == "o":
        turn = np.linspace(0, 2 * np.pi, 25)
        canvas.line(np.stack([x + reach * np.cos(turn), y + reach * np.sin(turn)], 1), width)
    elif kind == "dot":
        canvas.disc((x, y), max(1, reach / 2))
    elif kind == "square":
        canvas.line([(left, above), (right, above), (right, below), (left, below), (left, above)], width)
    else:
        canvas.polygon([(x, y), (x + 2 * reach, y + reach), (x + reach, y + 2 * reach)])
        canvas.line([(x, y), (x + 4 * reach, y + 4 * reach)], width)


def text(house: _House) -> Graphic:
    """Draw one to six lines of words and numbers."""
    lines = "\n".join(house.words() for _ in range(house.rng.choice([1, 1, 1, 2, 3, 6])))
    at, font, letters = house.place() - (house.letters, 0), house.font, house.letters
    return house.graphic(lambda canvas, time: canvas.text(at, lines, font, letters), boxed=True)


def calipers(house: _House) -> Graphic:
    """Draw two marks, perhaps a line between them, and a number or name next to one."""
    rng = house.rng
    first = house.place()
    second = first + rng.uniform(12, 0.5 * min(house.size) + 13) * _direction(rng)
    kind = str(rng.choice(["+", "+", "x", "o", "dot", "square", "T", "arrow"]))
    reach, width, pattern = float(rng.integers(2, 11)), house.stroke(), house.pattern()
    joined, name = rng.random() < 0.7, house.words() if rng.random() < 0.4 else str(rng.integers(1, 5))
    named, font, letters = rng.random() < 0.6, house.font, house.letters
    drift = rng.normal(0, 15, 2) if rng.random() < 0.15 else np.zeros(2)

    def pen(canvas: Canvas, time: float) -> None:
        end = second + drift * time
        if joined:
            _trace(canvas, np.stack([first, end]), pattern)
        for point in (first, end):
            _mark(canvas, point, kind, reach, width)
        if named:
            canvas.text(end + reach + 2, name, font, letters)

    return house.graphic(pen, moving=bool(drift.any()))


def _direction(rng: np.random.Generator) -> np.ndarray:
    turn = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(turn), np.sin(turn)])


def outline(house: _House) -> Graphic:
    """Draw an ellipse, a polygon, or a contour traced by hand."""
    rng = house.rng
    center, turn = house.place(0), rng.uniform(0, np.pi)
    turns = np.linspace(0, 2 * np.pi, int(rng.choice([5, 6, 9, 61, 61, 61])))
    radius = rng.uniform(6, 0.4 * min(house.size), 2)[:, None]
    wave = 1 + rng.choice([0, 0.15]) * np.sin(turns * rng.integers(2, 5) + turn)
    u, v = radius * wave * np.stack([np.cos(turns), np.sin(turns)])
    points = center + np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], 1)
    pattern = house.pattern()
    return house.graphic(lambda canvas, time: _trace(canvas, points, pattern), grounds=0.1)


def ruler(house: _House) -> Graphic:
    """Draw ticks down a side or along the bottom, every few longer, perhaps with numbers; or dots."""
    rng = house.rng
    down = rng.random() < 0.75
    length = house.size[0 if down else 1]
    across = rng.choice([rng.uniform(0, 8), house.size[1 if down else 0] - rng.uniform(1, 12), rng.uniform(0, length)])
    step, phase, every = rng.uniform(5, 40), rng.uniform(0, 20), int(rng.choice([1, 2, 5, 10]))
    short, long, width = rng.uniform(1, 6), rng.uniform(3, 12), house.stroke()
    side, axis, numbers = rng.choice([-1, 1]), rng.random() < 0.3, rng.random() < 0.4
    font, letters, dots = house.font, house.letters, rng.random() < 0.2

    def pen(canvas: Canvas, time: float) -> None:
        for number, along in enumerate(np.round(np.arange(phase, length, step))):
            reach = side * (short if number % every else long)
            ends = np.array([(across, along), (across + reach, along)])
            ends = ends if down else ends[:, ::-1]
            if dots:
                canvas.box(np.round(ends[0]), (width, width))
            else:
                canvas.line(ends, width)
            if numbers and number % every == 0:
                canvas.text(ends[1] + (3, -letters / 2), str(number), font, letters)
        if axis:
            ends = np.array([(across, phase), (across, length)])
            canvas.line(ends if down else ends[:, ::-1], width)

    return house.graphic(pen, grounds=0.1)


def focus(house: _House) -> Graphic:
    """Draw triangles or hourglasses next to the image."""
    rng = house.rng
    x, y, reach = *house.place(0), rng.uniform(2, 8)
    side, double, count = rng.choice([-1, 1]), rng.random() < 0.4, rng.integers(1, 4)

    def pen(canvas: Canvas, time: float) -> None:
        for number in range(count):
            top = y + 3 * number * reach
            canvas.polygon([(x, top), (x + side * 1.6 * reach, top - reach), (x + side * 1.6 * reach, top + reach)])
            if double:
                canvas.polygon([(x, top), (x - side * 1.6 * reach, top - reach), (x - side * 1.6 * reach, top + reach)])

    return house.graphic(pen, grounds=0.2)


def bar(house: _House) -> Graphic:
    """Draw the grey bar: from white to black, perhaps framed."""
    rng = house.rng
    corner, size = np.round(house.place(0)), np.array([rng.integers(4, 18), rng.integers(24, 140)])
    levels, framed = np.linspace(255, 1, int(rng.choice([size[1], 16, 8]))), rng.random() < 0.4

    def pen(canvas: Canvas, time: float) -> None:
        height = size[1] / len(levels)
        for number, level in enumerate(levels):
            canvas.box(corner + np.array((0, round(number * height))), (size[0], max(1, np.ceil(height))), int(level))
        if framed:
            x, y = corner
            right, below = corner + size
            canvas.line([(x, y), (right, y), (right, below), (x, below), (x, y)])

    return house.graphic(
        pen, grounds=0.0, layer="aliased", level=1.0, ground="box", ground_opacity=1.0, ground_level=0.0
    )


def heartbeat(time: np.ndarray) -> np.ndarray:
    """Return an ECG of one beat per unit of time, from -0.3 to 1."""
    phase = time % 1
    waves = ((0.15, 0.03, 0.15), (0.26, 0.008, -0.15), (0.3, 0.012, 1.0), (0.34, 0.01, -0.3), (0.55, 0.05, 0.3))
    return np.sum([height * np.exp(-(((phase - at) / width) ** 2) / 2) for at, width, height in waves], axis=0)


def trace(house: _House) -> Graphic:
    """Draw an ECG or a respiration curve along the frame; it scrolls, or is overwritten from the left."""
    rng = house.rng
    x = np.arange(0, house.size[1], 1.0)
    y, height = rng.uniform(0.5, 1) * house.size[0], rng.uniform(6, 40)
    beats, width, speed = rng.uniform(2, 6) / house.size[1], house.stroke(), rng.uniform(1, 6)
    breath, sweep, marks = rng.random() < 0.3, rng.random() < 0.5, rng.random() < 0.4
    noise = rng.normal(0, 0.02, len(x))

    def pen(canvas: Canvas, time: float) -> None:
        at = x * beats + (0 if sweep else speed * time)
        values = 0.5 * np.sin(2 * np.pi * at) if breath else heartbeat(at) + noise
        points = np.stack([x, y - height * values], 1)
        now = int(time * (len(x) - 1)) if sweep else len(x)
        for part in (points[:now], points[now + 8 :]):
            if len(part) > 1:
                canvas.line(part, width)
        if marks:
            canvas.line([(min(now, len(x) - 1), y - 1.2 * height), (min(now, len(x) - 1), y + 0.4 * height)], width)

    return house.graphic(pen, grounds=0.05, moving=True)


def clock(house: _House) -> Graphic:
    """Draw a changing time, frame counter or heart rate."""
    rng = house.rng
    at, font, letters, kind = house.place(0), house.font, house.letters, rng.integers(3)
    first, lasts = int(rng.integers(0, 80000)), int(rng.integers(2, 600))

    def pen(canvas: Canvas, time: float) -> None:
        now = first + int(time * lasts)
        if kind == 0:
            words = f"{now // 3600:02d}:{now // 60 % 60:02d}:{now % 60:02d}"
        elif kind == 1:
            words = f"{now % 60:02d}:{int(time * lasts * 61) % 100:02d}"
        else:
            words = f"{now % 999}/{lasts + first % 999} {60 + now % 40} bpm"
        canvas.text(at, words, font, letters)

    return house.graphic(pen, moving=True, boxed=True)


def guide(house: _House) -> Graphic:
    """Draw a needle guide: one or two rows of dots or dashes across the image."""
    rng = house.rng
    start, direction = house.place(0), _direction(rng)
    length, apart = rng.uniform(0.3, 1.2) * max(house.size), rng.uniform(5, 20) * direction[::-1] * (1, -1)
    pattern = (float(rng.choice([1, 1, 1, 4])), float(rng.integers(3, 15)), house.stroke())
    lines = [np.stack([start, start + length * direction]) + n * apart for n in range(rng.integers(1, 3))]

    def pen(canvas: Canvas, time: float) -> None:
        for line in lines:
            _trace(canvas, line, pattern)

    return house.graphic(pen, grounds=0.1)


def window(house: _House) -> Graphic:
    """Draw a Doppler window (upright or leaning), a zoom's box, a cursor line, a gate."""
    rng = house.rng
    corner, size = house.place(), rng.uniform(0.1, 0.8, 2) * house.size[::-1]
    lean = rng.choice([0, 0, rng.uniform(-0.4, 0.4)]) * size[1]
    pattern, kind = house.pattern(), rng.integers(4)
    (x, y), (right, below) = corner, corner + size
    points = np.array([(x, y), (right, y), (right + lean, below), (x + lean, below), (x, y)])
    if kind == 0:
        points = np.array([(x, -2), (x + lean, house.size[0] + 2)])

    def pen(canvas: Canvas, time: float) -> None:
        _trace(canvas, points, pattern)
        if kind == 0:
            middle = points.mean(0)
            for side in (-4, 4):
                canvas.line(middle + np.array([(-6, side), (6, side)]), pattern[2])

    return house.graphic(pen, grounds=0.05)


def logo(house: _House) -> Graphic:
    """Draw a filled disc, triangle, ring or box with a letter cut out; the mark of the probe's side; a drawing of a
    body."""
    rng = house.rng
    at, reach, kind = house.place(0), rng.uniform(4, 22), rng.integers(4)
    letter, font = str(rng.choice(list(string.ascii_uppercase))), house.font
    limbs = np.cumsum(rng.normal(0, reach / 2, (7, 2)), 0)

    def pen(canvas: Canvas, time: float) -> None:
        if kind == 0:
            canvas.disc(at, reach)
            canvas.disc(at + reach / 3, reach / 2, 0)
        elif kind == 1:
            canvas.polygon(at + reach * np.array([(-1, 0.8), (1, 0.8), (0, -1)]))
        elif kind == 2:
            canvas.line(at + limbs, 1)
            _mark(canvas, at + limbs[3], "square", reach / 3, 2)
        else:
            _mark(canvas, at, "o", reach, 2)
            canvas.text(at - reach / 2, letter, font, reach * 1.2)

    return house.graphic(pen, grounds=0.1)


def panel(house: _House) -> Graphic:
    """Draw a filled rectangle: blacked out, or a strip of the screen, perhaps with words in it."""
    rng = house.rng
    corner = np.round(house.place())
    size = np.round(rng.uniform((12, 8), (0.5 * house.size[1] + 13, 0.2 * house.size[0] + 9)))
    level = float(rng.choice([0.0, 0.0, 0.0, rng.uniform(0.05, 0.95)]))

    def pen(canvas: Canvas, time: float) -> None:
        canvas.box(corner, size)

    return house.graphic(pen, grounds=0.0, layer="aliased", level=level)


def pointer(house: _House) -> Graphic:
    """Draw an arrow that points at something, or a mouse pointer, which may move."""
    rng = house.rng
    at, drift = house.place(0), rng.normal(0, 40, 2) * (rng.random() < 0.4)
    reach, width = float(rng.integers(2, 6)), house.stroke()
    return house.graphic(
        lambda canvas, time: _mark(canvas, at + drift * time, "arrow", reach, width), 0.5, moving=bool(drift.any())
    )


KINDS: dict[str, tuple[Callable[[_House], Graphic], float]] = {  # the function of each kind, and its relative frequency
    "text": (text, 7), "calipers": (calipers, 5), "outline": (outline, 1.5), "ruler": (ruler, 3), "focus": (focus, 1),
    "bar": (bar, 1), "trace": (trace, 1), "clock": (clock, 1), "guide": (guide, 1.2), "window": (window, 1.2),
    "logo": (logo, 1), "panel": (panel, 1), "pointer": (pointer, 0.7),
}  # fmt: skip
