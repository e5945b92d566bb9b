"""The formats of files. A new one is a file with a class of its own and its line in `FORMATS`."""

from __future__ import annotations

from pathlib import Path

from .arrays import Arrays
from .base import Format, has_suffix
from .dicom import Dicom
from .itk import Images
from .metaimage import MetaImage
from .nrrd import Nrrd

FORMATS: tuple[Format, ...] = (
    MetaImage(),
    Nrrd(),
    Arrays(),
    Dicom(),
    Images(),
)


def by_name(path: Path) -> Format | None:
    """The format whose suffix a file's name has."""
    return next((one for one in FORMATS if has_suffix(path, one.suffixes)), None)


def by_content(path: Path) -> Format | None:
    """The format that a file's content is of."""
    return next((one for one in FORMATS if one.recognizes(path)), None)
