"""`slicer.dicomDatabase`: the user's DICOM database, which the application opens at its start, if it can."""

from __future__ import annotations

from .complaints import complain


class DicomDatabase:
    """The part of ctkDICOMDatabase that is used: its state, and values of instances. `openWith` fills it, for tests."""

    def __init__(self):
        self._values: dict[tuple[str, str], str] | None = None

    @property
    def isOpen(self) -> bool:
        return self._values is not None

    def openWith(self, values: dict[tuple[str, str], str]) -> None:
        """Open it; values: (SOP instance UID, "gggg,eeee") -> value."""
        self._values = {(uid, tag.upper()): value for (uid, tag), value in values.items()}

    def closeDatabase(self) -> None:
        self._values = None

    def instanceValue(self, uid: str, tag: str) -> str:
        """Return the value of an instance's tag; empty if it has none, and, with an error in the log, when closed."""
        if self._values is None:
            complain(f"SELECT Value FROM TagCache: Driver not loaded; the DICOM database is closed ({uid}, {tag}).")
            return ""
        return self._values.get((uid, tag.upper()), "")
