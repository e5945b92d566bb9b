"""A child process of the same Python, in a process group of its own, that speaks JSON lines; standard library alone."""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent.parent  # where Speckle2SelfLib lies, in the sources and when installed
GRACE = 0.5  # seconds that a process has to end by itself
_children: weakref.WeakSet = weakref.WeakSet()


def python_executable() -> str:
    """The interpreter for child processes: this one, or PythonSlicer where this is the application."""
    here = Path(sys.executable)
    if here.stem.lower().startswith("python"):
        return str(here)
    folders = [here.parent, here.parent / "bin", here.parent.parent / "bin"]
    found = [folder / name for folder in folders for name in ("PythonSlicer", "PythonSlicer.exe")]
    return str(next((path for path in found if path.exists()), here))


class Child:
    """`python ARGUMENTS...` with the core on its path. It ends with this process, whichever way that ends: its
    standard input closes then, which the programs started here watch.

    Raises OSError where it cannot be started.
    """

    def __init__(self, arguments: list[str], python: str | None = None, folder=None):
        # Threads that wait do not spin: the application beside the child has threads of its own.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
        paths = [str(LIBRARY), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        group = {"start_new_session": True}
        if os.name == "nt":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        self.process = subprocess.Popen(
            [python or python_executable(), *arguments], cwd=folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **group,
        )  # fmt: skip
        self._lines: queue.SimpleQueue = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=20)
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in ((self._read, self.process.stdout), (self._read_errors, self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()
        _children.add(self)

    def _read(self, stream) -> None:
        with suppress(OSError, ValueError):
            for text in stream:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # a library's own print
                if isinstance(line, dict):
                    self._lines.put(line)

    def _read_errors(self, stream) -> None:
        with suppress(OSError, ValueError):
            for text in stream:
                if text.strip():
                    self._errors.append(text.decode(errors="replace").strip()[:500])

    def poll(self) -> int | None:
        """The exit code once the process has ended and all that it said has been read; else None."""
        if self.process.poll() is None or any(reader.is_alive() for reader in self._readers):
            return None
        return self.process.returncode

    def lines(self) -> list[dict]:
        """What the process said since the last call."""
        taken = []
        with suppress(queue.Empty):
            while True:
                taken.append(self._lines.get_nowait())
        return taken

    def errors(self) -> list[str]:
        """The last lines of its standard error."""
        return list(self._errors)

    def send(self, text: str) -> None:
        """A line on its standard input; nothing where it has ended."""
        with suppress(OSError, ValueError):
            self.process.stdin.write(text.encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Ends the process and all that it started, at once."""
        if self.process.poll() is None:
            kill_tree(self.process)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError, ValueError):
                stream.close()


def kill_tree(process: subprocess.Popen) -> None:
    """Ends a process of `Child` and its descendants."""
    if os.name == "nt":
        command = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(command, capture_output=True, creationflags=subprocess.CREATE_NO_WINDOW)
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@atexit.register
def _close_all() -> None:
    for child in list(_children):
        child.close()
