"""PNG is read and written by ITK, or by Pillow if it is grey with transparency; JPEG by Pillow, because ITK's library
prints warnings."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..system import InputError
from .base import DEFLATE_LIMIT, HEAD, Recording, check_promise, has_suffix, lengths, orient, reading
from .itk import Images

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
GREY, GREY_WITH_ALPHA = 0, 4  # color types of PNG
KEPT = {b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"sRGB", b"gAMA", b"cHRM"}  # chunks: pixel size, texts, colors
ORIENTATION = 274  # EXIF's tag
MILLIMETRES = {1: 25.4, 2: 10.0}  # per unit of a JPEG's density: inch, centimeter
PACKED_JPEG = 8 * DEFLATE_LIMIT  # largest ratio of pixels to bytes


class Pictures(Images):
    name = "picture"
    suffixes = (".png", ".jpg", ".jpeg")
    geometric = False

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith((PNG, JPEG))

    def read(self, path: Path, key: str) -> Recording:
        with path.open("rb") as file:
            head = file.read(HEAD)
        recording = self._read_png(path, key, head) if head.startswith(PNG) else self._read_jpeg(path)
        orientation = _orientation(path)
        if "alpha" in recording.source:
            recording.source["alpha"] = orient(recording.source["alpha"][None], orientation)[0]
        return replace(recording, frames=np.ascontiguousarray(orient(recording.frames, orientation)))

    def _read_png(self, path: Path, key: str, head: bytes) -> Recording:
        data = path.read_bytes()
        animated = _chunks(data, {b"acTL"})
        if animated and int.from_bytes(animated[8:12], "big") > 1:
            raise InputError(f"{path} is an animated PNG, but only one frame would be read; save it as .webp.")
        kind, bits = head[25:26], int.from_bytes(head[24:25], "big")
        if kind == bytes([GREY_WITH_ALPHA]) or (kind == bytes([GREY]) and _chunks(data, {b"tRNS"})):
            recording = self._read_grey_with_alpha(path, bits)
        else:
            recording = super().read(path, key)
        recording.source["chunks"] = _chunks(data, KEPT)
        return recording

    def _read_grey_with_alpha(self, path: Path, bits: int) -> Recording:
        if bits != 8:
            raise InputError(f"{path} is grey of {bits} bits with transparency; save it without transparency.")
        array, _ = _by_pillow(path, lambda mode: "LA", DEFLATE_LIMIT)
        return Recording(array[None, ..., 0], path, self.name, single=True, source={"alpha": array[..., 1]})

    def _read_jpeg(self, path: Path) -> Recording:
        array, known = _by_pillow(path, lambda mode: "L" if mode == "L" else "RGB", PACKED_JPEG)
        unit, density = MILLIMETRES.get(known.get("jfif_unit"), 0.0), known.get("jfif_density", (1, 1))
        axial, lateral = lengths(unit / (value or 1) for value in density[::-1])
        return Recording(array[None], path, self.name, single=True, spacing=(1.0, axial, lateral))

    def check(self, path: Path, recording: Recording) -> None:
        if has_suffix(path, (".jpg", ".jpeg")):
            raise InputError(f"{path.name} cannot be written: JPEG loses detail; choose .png, .tif, .mha or .npy.")
        if "alpha" not in recording.source:
            super().check(path, recording)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        if "alpha" in recording.source:
            Image.fromarray(np.dstack([frames[0], recording.source["alpha"]])).save(path)
        else:
            super().write(path, frames, recording)
        if chunks := recording.source.get("chunks"):
            data = path.read_bytes()
            path.write_bytes(PNG + _chunks(data, {b"IHDR"}) + chunks + _chunks(data, {b"IHDR", *KEPT}, other=True))


def _by_pillow(path: Path, mode_of: Callable[[str], str], packed: int) -> tuple[np.ndarray, dict]:
    """Return the pixels of an image, converted to the mode that its own is mapped to, and what else Pillow finds in it.

    packed: the largest possible ratio of pixels to bytes.
    """
    with reading(path, "an image", "PIL"), Image.open(path) as image:
        check_promise(image.width * image.height, path.stat().st_size, path, packed)
        return np.asarray(image.convert(mode_of(image.mode))), image.info


def _chunks(data: bytes, names: set[bytes], other: bool = False) -> bytes:
    """Return the intact chunks of a PNG with these names, or with all other names."""
    at, kept = len(PNG), []
    while at + 12 <= len(data):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        intact = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if (name in names) != other and intact and end <= len(data):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orientation(path: Path) -> int:
    """Return the orientation in the file's EXIF data; 1 (upright) if there is none that can be read."""
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds; the pixels can still be good
        return 1
