"""The user's language, also for code that runs without Slicer; standard library only."""

from __future__ import annotations

import sys

__all__ = ["_"]

if "slicer" in sys.modules:  # do not load it for this outside the application: it takes a second
    from slicer.i18n import tr as _
else:

    def _(text: str) -> str:
        """Return the text as it is."""
        return text
