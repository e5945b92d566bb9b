"""The file formats. A new format is a file with its class, and a line in `FORMATS`."""

from __future__ import annotations

from pathlib import Path

from .arrays import Arrays
from .base import HEAD, Format, has_suffix
from .dicom import Dicom
from .films import Animations, Films
from .itk import Images
from .metaimage import MetaImage
from .nifti import Nifti
from .nrrd import Nrrd
from .pictures import Pictures
from .research import Hdf5, Matlab
from .tiff import Tiff

FORMATS: tuple[Format, ...] = (
    Dicom(),  # first, because its files may begin like those of other formats
    MetaImage(),
    Nrrd(),
    Arrays(),
    Matlab(),
    Hdf5(),
    Tiff(),
    Nifti(),
    Pictures(),
    Animations(),
    Films(),
    Images(),
)


def by_name(path: Path) -> Format | None:
    """Return the format that a file's suffix belongs to; None if there is none."""
    return next((one for one in FORMATS if has_suffix(path, one.suffixes)), None)


def by_content(path: Path) -> Format | None:
    """Return the format of a file's content. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return next((one for one in FORMATS if one.recognizes(head, path)), None)
