"""Message boxes, dialogs and file dialogs, as PythonQt hands them out, without anybody before the screen.

`asked` keeps what they show, `answers` says what the user does. As in the application, an open box does not stop the
rest: a nested event loop runs, in which timers fire and processes are read, for as long as the user takes (`patience`).
"""

from __future__ import annotations

import time

from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property

asked: list[tuple[str, str]] = []  # (kind, text) of what would have waited for the user
answers: dict[str, object] = {}  # kind -> what the user answers: a button, a file, a text
patience = 0.03  # seconds that a user takes


def _ask(kind: str, text: str, default):
    """Return what the user answers, once they have; everything else continues meanwhile."""
    asked.append((kind, text))
    end, turns = time.monotonic() + patience, 0
    while time.monotonic() < end or turns < 10:
        QtCore.QCoreApplication.processEvents()  # no QEventLoop: it would delete what was given to deleteLater() before
        time.sleep(0.001)
        turns += 1
    return answers.get(kind, default)


class QDialog(QtWidgets.QDialog):
    """Answered by itself."""

    def exec(self):
        self.show()
        result = _ask("dialog", self.windowTitle(), QtWidgets.QDialog.DialogCode.Accepted)
        self.hide()
        return result


class QMessageBox(QtWidgets.QMessageBox):
    """Answered by itself."""

    def exec(self):
        kind = "question" if self.icon() == QtWidgets.QMessageBox.Icon.Question else "message"
        self.setModal(True)
        self.show()
        result = _ask(kind, self.text(), QtWidgets.QMessageBox.StandardButton.Ok)
        self.hide()
        return result


class ctkMessageBox(QMessageBox):
    """A message box that can be told not to come again; here it always comes."""

    dontShowAgainSettingsKey = Property(str, lambda self: "", lambda self, key: None)


class QFileDialog(QtWidgets.QFileDialog):
    """The static functions, as PythonQt gives them: a path, empty when cancelled."""

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
    """The static function, as PythonQt gives it: a text, empty when cancelled."""

    @staticmethod
    def getText(parent, title, label, mode=None, text=""):
        return _ask("text", title, "")
