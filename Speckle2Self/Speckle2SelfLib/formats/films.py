"""Films (MP4, MOV, AVI, MKV and others) are read and written by PyAV, frame by frame and without loss; GIF and WebP by
Pillow."""

from __future__ import annotations

import logging
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from ..system import InputError
from . import base
from .base import (
    NEAR,
    Format,
    Recording,
    allocate,
    frame_times,
    has_suffix,
    is_steady,
    quiet,
    reading,
    release,
    unsupported_type,
)

CONTAINERS = {b"ftyp": 4, b"moov": 4, b"mdat": 4, b"wide": 4, b"AVI ": 8, b"\x1a\x45\xdf\xa3": 0, b"\0\0\x01\xba": 0,
              b"\0\0\x01\xb3": 0, b"\x30\x26\xb2\x75": 0, b"FLV\x01": 0, b"OggS": 0}  # fmt: skip
LOSSLESS = {  # suffix -> codec and pixel format for grey of 8 and 16 bits and for colors
    ".avi": {"grey": ("ffv1", "gray"), "colour": ("ffv1", "bgr0"), "deep": ("ffv1", "gray16le")},
    ".mkv": {"grey": ("ffv1", "gray"), "colour": ("ffv1", "bgr0"), "deep": ("ffv1", "gray16le")},
    ".mp4": {"grey": ("libx264", "gray"), "colour": ("libx264rgb", "rgb24")},
    ".m4v": {"grey": ("libx264", "gray"), "colour": ("libx264rgb", "rgb24")},
    ".mov": {"grey": ("png", "gray"), "colour": ("png", "rgb24")},
}
SQUARE = (".mkv", ".avi")  # PyAV writes only square pixels into these
PLAIN = {"gray": "gray", "bgr0": "rgb24", "rgb24": "rgb24", "gray16le": "gray16le"}  # the layout of the arrays
STEADY = 2e-3  # s; containers round times to milliseconds
MILLISECOND = 0.99e-3  # s, less rounding
FASTEST_AVI = 1000  # frames per second; for more, the library counts in another unit
PACKED = 2**17  # largest ratio of pixels to bytes in films and animations
PACKED_GIF = 2**11  # the same for a GIF's first frame; it is 1234 for a black image
CLOCK = Fraction(1, 90000)  # s, unit of time for frames at unequal intervals
logger = logging.getLogger(__name__)


class Films(Format):
    name = "film"
    suffixes = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")

    def recognizes(self, head: bytes, path: Path) -> bool:
        return any(head[at:].startswith(mark) for mark, at in CONTAINERS.items())

    def keeps_times(self, path: Path, recording: Recording) -> bool:
        return _rate(recording) is None or is_steady(recording.times)

    def read(self, path: Path, key: str) -> Recording:
        av = _pyav()
        with reading(path, "a film", "libav", own=()):
            try:
                frames, times, source = _decode(av, path, colour=False)
            except _HasColours:
                frames, times, source = _decode(av, path, colour=True)
        if source.pop("sound"):
            logger.warning("The sound of the film is left out.")
        spacing = (1.0, *source.pop("shape"))
        return Recording(frames, path, self.name, sequence=True, times=times, spacing=spacing, source=source)

    def check(self, path: Path, recording: Recording) -> None:
        av, kind = _pyav(), _pixel_kind(recording.frames)
        codecs = LOSSLESS.get(path.suffix.lower())
        if codecs is None:
            raise InputError(f"{path.name} cannot be written: its format loses detail; choose .mkv, .avi or .mp4.")
        if kind not in codecs:
            raise unsupported_type(path, path.suffix, recording)
        codec = codecs[kind][0]
        if codec not in av.codecs_available:
            raise InputError(f"{path.name} cannot be written: this PyAV has no encoder {codec}; choose .mkv or .npy.")
        if recording.format == self.name and _aspect(recording) != 1 and path.suffix.lower() in SQUARE:
            raise InputError(f"{path.name} cannot be written: its pixels would become square; choose .mp4 or .mov.")
        rate = _rate(recording)
        if rate is None and path.suffix.lower() == ".mkv" and np.diff(recording.times).min() < MILLISECOND:
            raise InputError(f"{path.name} cannot be written: its format rounds times to milliseconds; choose .mp4.")
        if path.suffix.lower() == ".avi" and (rate is None or rate > FASTEST_AVI):
            reason = "its frames have one rate" if rate is None else f"it holds {FASTEST_AVI} frames a second at most"
            raise InputError(f"{path.name} cannot be written: {reason}; choose .mkv or .mp4.")

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        av = _pyav()
        try:
            self._write(av, path, frames, recording)
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # for example a full disk
                raise
            raise RuntimeError("the film could not be encoded") from error

    def _write(self, av, path: Path, frames: np.ndarray, recording: Recording) -> None:
        codec, pixels = LOSSLESS[path.suffix.lower()][_pixel_kind(frames)]
        rate = _rate(recording)
        with quiet("libav"), av.open(str(path), "w") as container:
            container.metadata.update(recording.source.get("metadata", {}))
            stream = container.add_stream(codec, rate=rate or Fraction(30))
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            stream.codec_context.sample_aspect_ratio = _aspect(recording)
            stream.options = {"qp": "0"} if "264" in codec else {"level": "3"} if codec == "ffv1" else {}
            stream.codec_context.color_range = av.video.reformatter.ColorRange.JPEG  # 0 is black, 255 white
            stream.codec_context.time_base = 1 / rate if rate else CLOCK
            for number, array in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=PLAIN[pixels])
                frame.time_base = 1 / rate if rate else CLOCK
                frame.pts = number if rate else round(recording.times[number] / CLOCK)
                container.mux(stream.encode(frame))
                release(frames)
            container.mux(stream.encode(None))


class Animations(Format):
    name = "animation"
    suffixes = (".gif", ".webp")

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head[:4] == b"GIF8" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")

    def keeps_times(self, path: Path, recording: Recording) -> bool:
        steps = np.diff(recording.times)
        error = np.abs(np.cumsum(_milliseconds(recording))[:-1] / 1000 - recording.times[1:]).max()
        return bool(error <= NEAR * steps.min())

    def read(self, path: Path, key: str) -> Recording:
        with reading(path, "an animation", "PIL"), Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            pixels, size = image.width * image.height, path.stat().st_size
            if pixels * count > size * PACKED or (image.format == "GIF" and pixels > size * PACKED_GIF):
                raise InputError(f"{path} is damaged: it claims {count} frames of {image.width} x {image.height}.")
            frames, durations = _animation(image, count)
        times = frame_times(np.cumsum([0, *durations[:-1]]) / 1000, count)
        source = {"last": durations[-1]}
        return Recording(frames, path, self.name, single=count == 1, sequence=count > 1, times=times, source=source)

    def check(self, path: Path, recording: Recording) -> None:
        frames, gif = recording.frames, has_suffix(path, (".gif",))
        if frames.dtype != np.uint8 or (gif and frames.ndim == 4):
            raise unsupported_type(path, "a grey GIF" if gif else "WebP", recording)
        steps = np.asarray(_durations(recording))
        if gif and np.abs(steps - np.round(steps, -1)).max() > 0.5:
            raise InputError(
                f"{path.name} cannot be written: a GIF stores times in hundredths of a second; choose .webp."
            )
        if min(_milliseconds(recording)) < 1:
            raise InputError(
                f"{path.name} cannot be written: in this format, frames last at least a millisecond; choose .mkv."
            )

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        images = (Image.fromarray(frame) for frame in frames)
        first, steps = next(images), _milliseconds(recording)
        how = {"optimize": False, "disposal": 2} if has_suffix(path, (".gif",)) else {"lossless": True, "exact": True}
        first.save(path, save_all=True, append_images=images, duration=steps, loop=0, **how)
        with Image.open(path) as image:  # Pillow merges equal frames
            if getattr(image, "n_frames", 1) != len(frames):
                raise RuntimeError("not the written frames")


def _pyav():
    try:
        import av
    except ImportError as error:
        raise InputError("Films need the package av (PyAV); install it: python -m pip install av.") from error
    return av


class _HasColours(Exception):
    """Raised if a film that was assumed to be grey has colors."""


def _pixel_kind(frames: np.ndarray) -> str:
    if frames.ndim == 4:
        return "colour" if frames.shape[-1] == 3 and frames.dtype == np.uint8 else "other"
    return {np.dtype(np.uint8): "grey", np.dtype(np.uint16): "deep"}.get(frames.dtype, "other")


def _decode(av, path: Path, colour: bool) -> tuple[np.ndarray, np.ndarray | None, dict]:
    """Return a film's frames, times and metadata. Raises _HasColours if it has colors that were not requested."""
    moments: list[float | None] = []
    with av.open(str(path)) as container, tempfile.TemporaryFile(prefix="speckle2self-") as file:
        if not container.streams.video:
            raise InputError(f"{path} is a film without images.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        promised, rate, shape, dtype, damaged = stream.frames, stream.average_rate, None, None, 0
        sound, metadata = bool(container.streams.audio), dict(container.metadata)
        for frame in container.decode(stream):
            array = _array(frame, colour)
            shape, dtype = shape or array.shape, dtype or array.dtype
            if array.shape != shape or array.dtype != dtype:
                raise InputError(f"{path} changes its size from {shape} to {array.shape}; split it there.")
            file.write(np.ascontiguousarray(array).data)
            moments.append(frame.time)
            damaged += frame.is_corrupt
        promised = promised or _expected_count(container, stream, moments)
        if shape is None:
            raise InputError(f"{path} is damaged, or cut short: no frame can be read.")
        if len(moments) < promised:
            raise InputError(f"{path} is cut short: {len(moments)} of {promised} frames can be read.")
        if frame.is_corrupt:
            raise InputError(f"{path} is cut short: its last frame, number {len(moments)}, is incomplete.")
        if damaged:
            logger.warning("The film has %d damaged frames.", damaged)
        file.flush()
        whole = (len(moments), *shape)
        large = file.tell() >= base.LARGE
        frames = np.memmap(file, dtype, "r+", shape=whole) if large else _load(file, dtype, whole)
    source = {"rate": rate, "metadata": metadata, "sound": sound, "shape": _pixel_shape(stream, frame)}
    return frames, _regular_times(moments, rate), source


def _pixel_shape(stream, frame) -> tuple[float, float]:
    """Return height and width of a pixel as displayed, relative to its height."""
    aspect = float(stream.sample_aspect_ratio or 1)
    aspect = aspect if 0.1 < aspect < 10 else 1.0
    return (aspect, 1.0) if round(getattr(frame, "rotation", 0) / 90) % 2 else (1.0, aspect)


def _aspect(recording: Recording) -> Fraction:
    """Return the ratio of a pixel's width to its height."""
    _, axial, lateral = recording.spacing
    return Fraction(lateral / axial).limit_denominator(1000) or Fraction(1)


def _expected_count(container, stream, moments: list) -> int:
    """Return the number of frames from the duration of a film without index, such as MKV; 0 if they are at unequal
    intervals, or the film has sound, which may be longer."""
    rate, times = stream.average_rate, frame_times(moments, len(moments))
    if not rate or times is None or container.streams.audio or np.abs(np.diff(times) - 1 / float(rate)).max() > STEADY:
        return 0
    count = round(((container.duration or 0) / 1e6 - (moments[0] or 0)) * float(rate))
    return count if count > len(moments) + 1 + count / 100 else 0  # stored durations are rounded


def _load(file, dtype, shape: tuple[int, ...]) -> np.ndarray:
    file.seek(0)
    return np.frombuffer(bytearray(file.read()), dtype).reshape(shape)


def _array(frame, colour: bool) -> np.ndarray:
    """Return the pixels of a frame as displayed: (H, W), or (H, W, 3) if colors are requested."""
    grey = frame.format.name.startswith("gray")
    deep = max(part.bits for part in frame.format.components) > 8
    if grey:
        array = frame.to_ndarray(format="gray16le" if deep else "gray")
    else:
        array = frame.to_ndarray(format="rgb48le" if deep else "rgb24")
        alike = np.array_equal(array[..., 0], array[..., 1]) and np.array_equal(array[..., 0], array[..., 2])
        if not alike and not colour:
            raise _HasColours
        array = array if colour else array[..., 0]
    if colour and array.ndim == 2:
        array = np.repeat(array[..., None], 3, -1)
    return np.rot90(array, round(getattr(frame, "rotation", 0) / 90)) if getattr(frame, "rotation", 0) else array


def _regular_times(moments: list[float | None], rate) -> np.ndarray | None:
    """Return the times of frames: regular ones if the film's differ from these only by a container's rounding."""
    times = frame_times(moments, len(moments))
    if not rate or len(moments) < 2:
        return times
    even = np.arange(len(moments)) / float(rate)
    return even if times is None or np.abs(times - even).max() <= STEADY else times


def _rate(recording: Recording) -> Fraction | None:
    """Return frames per second; None for frames at unequal intervals, 30 if nothing is known."""
    if recording.times is None:
        return Fraction(30)
    steps = np.diff(recording.times)
    if steps.max() - steps.min() > STEADY:
        return None
    return recording.source.get("rate") or Fraction(1 / float(steps.mean())).limit_denominator(1001)


def _durations(recording: Recording) -> list[float]:
    """Return the display duration of each frame in ms."""
    if recording.times is None:
        return [100.0] * len(recording.frames)
    steps = np.diff(recording.times) * 1000
    return [*steps, recording.source.get("last") or float(steps[-1])]


def _milliseconds(recording: Recording) -> list[int]:
    """Return the durations in whole milliseconds, with each frame beginning as close to its time as possible."""
    ends = np.round(np.cumsum([0.0, *_durations(recording)]))
    return [int(step) for step in np.diff(ends)]


def _animation(image, count: int) -> tuple[np.ndarray, list[float]]:
    """Return the frames of a GIF or WebP, as grey values if possible, and the display duration of each in ms."""
    alpha = image.mode == "RGBA" or (image.mode == "P" and "transparency" in image.info and count == 1)
    shape = (count, image.height, image.width, 4 if alpha else 3)
    frames, durations = allocate(shape, np.uint8), []
    grey = opaque = True
    for number, frame in enumerate(ImageSequence.Iterator(image)):
        array = np.asarray(frame.convert("RGBA" if alpha else "RGB"))
        frames[number] = array
        grey = grey and np.array_equal(array[..., 0], array[..., 1]) and np.array_equal(array[..., 0], array[..., 2])
        opaque = opaque and (not alpha or array[..., 3].min() == 255)
        durations.append(float(frame.info.get("duration", 0)) or 100.0)
    if grey and opaque:
        return _copy(frames[..., 0]), durations
    return _copy(frames[..., :3]) if alpha and opaque else frames, durations


def _copy(frames: np.ndarray) -> np.ndarray:
    result = allocate(frames.shape, frames.dtype)
    for number, frame in enumerate(frames):
        result[number] = frame
    return result
