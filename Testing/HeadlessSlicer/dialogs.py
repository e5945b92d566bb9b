"""Message boxes, dialogs and file dialogs, as PythonQt hands them out, without a user.

`asked` records the boxes, `answers` holds the user's answers. As in the application, an open box does not stop the
rest: a nested event loop runs, in which timers fire and processes are read, until the user answers (`patience`).
"""

from __future__ import annotations

import time

from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property

asked: list[tuple[str, str]] = []  # (kind, text) of the boxes that would have waited for the user
answers: dict[str, object] = {}  # kind -> what the user answers: a button, a file, a text
patience = 0.03  # seconds until the user answers


def _ask(kind: str, text: str, default):
    """Return the user's answer after `patience`; everything else continues until then."""
    asked.append((kind, text))
    end, turns = time.monotonic() + patience, 0
    while time.monotonic() < end or turns < 10:
        QtCore.QCoreApplication.processEvents()  # a QEventLoop would delete objects passed to deleteLater()
        time.sleep(0.001)
        turns += 1
    return answers.get(kind, default)


class QDialog(QtWidgets.QDialog):
    """A dialog that is answered automatically."""

    def exec(self):
        self.show()
        result = _ask("dialog", self.windowTitle(), QtWidgets.QDialog.DialogCode.Accepted)
        self.hide()
        return result


class QMessageBox(QtWidgets.QMessageBox):
    """A dialog that is answered automatically."""

    def exec(self):
        kind = "question" if self.icon() == QtWidgets.QMessageBox.Icon.Question else "message"
        self.setModal(True)
        self.show()
        result = _ask(kind, self.text(), QtWidgets.QMessageBox.StandardButton.Ok)
        self.hide()
        return result


class ctkMessageBox(QMessageBox):
    """A message box with "do not show again", which is ignored here."""

    dontShowAgainSettingsKey = Property(str, lambda self: "", lambda self, key: None)


class QFileDialog(QtWidgets.QFileDialog):
    """The static functions, as in PythonQt: a path, empty when canceled."""

    @staticmethod
    def getOpenFileName(parent=None, caption="", directory="", filter=""):
        return _ask("open", caption, "")

    @staticmethod
    def getSaveFileName(parent=None, caption="", directory="", filter=""):
        return _ask("save", caption, "")

    @staticmethod
    def getExistingDirectory(parent=None, caption="", directory=""):
        return _ask("folder", caption, "")


class QInputDialog(QtWidgets.QInputDialog):
    """The static function, as in PythonQt: a text, empty when canceled."""

    @staticmethod
    def getText(parent, title, label, mode=None, text=""):
        return _ask("text", title, "")
