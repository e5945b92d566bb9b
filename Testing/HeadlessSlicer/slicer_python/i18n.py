"""`slicer.i18n`: translation of texts; the application runs in English, so texts are unchanged."""

import slicer


def translate(context: str, text: str) -> str:
    """Return the text in the application's language."""
    return slicer.app.translate(context, text)


def tr(text: str) -> str:
    """Return the text in the application's language; the context is the calling file in Slicer."""
    return slicer.app.translate("", text)
