"""Run a child process of the same Python, in its own process group, that writes JSON lines; standard library only.

Its output is read without threads: in Slicer, the timer that polls it may be the only Python code that runs.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path

from .words import _

LIBRARY = Path(__file__).resolve().parent.parent  # folder of Speckle2SelfLib, in the sources and when installed
LONGEST = 2**16  # bytes that are read at once
GRACE, PATIENCE = 0.5, 0.05  # seconds; a process is given this long to end, and the caller waits this long
KILLED = (134, 137, 139)  # exit codes of shells for the signals ABRT, KILL and SEGV
ABNORMAL = "exit abnormally"  # CTK's launcher prints this if a signal ended the program
BAD_CPU = 86  # errno of macOS: a program for another processor
_children: weakref.WeakSet = weakref.WeakSet()
_ending: set[threading.Thread] = set()  # threads that wait for closed processes to end


def python_executable() -> str:
    """Return the interpreter for child processes: PythonSlicer if there is one, else this one.

    Slicer's own `sys.executable` is PythonSlicer or empty since version 5.10; before, it was the application.
    """
    launcher = shutil.which("PythonSlicer")
    if launcher:
        return launcher
    here = Path(sys.executable or sys.argv[0] or ".").resolve()
    if sys.executable and here.stem.lower().startswith("python"):
        return sys.executable
    folders = [here.parent, here.parent / "bin", here.parent.parent / "bin"]
    found = [folder / name for folder in folders for name in ("PythonSlicer", "PythonSlicer.exe")]
    return str(next((path for path in found if path.exists()), here))


def is_crash(code: int, errors: list[str]) -> bool:
    """Return whether a process crashed or was stopped by the system, from its exit code and its last lines.

    Slicer's Python is started by a launcher, which remains its parent, and returns 1 and a message for any signal.
    """
    return code < 0 or code in KILLED or (code == 1 and any(ABNORMAL in line for line in errors))


def start_failure(error: OSError) -> str:
    """Return why a process could not be started, and what to do if that is known."""
    if sys.platform == "darwin" and error.errno == BAD_CPU:
        return _("Slicer's Python needs Rosetta; install it with 'softwareupdate --install-rosetta' and try again")
    return error.strerror or str(error).rstrip(".")


class Child:
    """Run `python ARGUMENTS...` with the core on its path. The process ends with this one, however that ends: its
    standard input is then closed, which the programs started here watch.

    Raises OSError if it cannot be started.
    """

    def __init__(self, arguments: list[str], python: str | None = None, folder=None):
        # Waiting threads spin for some 0.1 ms (GNU) or 1 ms (LLVM), then sleep: sleeping at once doubles the time of
        # a network, spinning for long slows the application down.
        environment = {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        paths = [str(LIBRARY), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        group = {"start_new_session": True}
        if os.name == "nt":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        self.process = subprocess.Popen(
            [python or python_executable(), *arguments], cwd=folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **group,
        )  # fmt: skip
        for stream in (self.process.stdout, self.process.stderr):
            os.set_blocking(stream.fileno(), False)
        self._rest = {self.process.stdout: b"", self.process.stderr: b""}
        self._errors: deque[str] = deque(maxlen=20)
        self._ended = False  # whether the process's end was seen; its number may be reused afterwards
        _children.add(self)

    def _new_lines(self, stream) -> list[bytes]:
        """Return the complete lines since the last call, of 1 MB at most."""
        text = self._rest[stream]
        with suppress(OSError, ValueError):
            while len(text) < 2**20 and (more := os.read(stream.fileno(), LONGEST)):
                text += more
        *lines, self._rest[stream] = text.split(b"\n")
        return lines

    def poll(self) -> int | None:
        """Return the exit code once the process has ended; else None. Call it before `lines`, so that none is missed.

        The process may be a launcher: if only that was ended, its descendants are ended as well, once.
        """
        code = self.process.poll()
        if code is not None and not self._ended:
            self._ended = True
            if os.name != "nt":  # on Windows, `close` ends descendants through their standard input
                kill_tree(self.process)
        return code

    def lines(self) -> list[dict]:
        """Return the JSON objects that the process printed since the last call, without other lines (a library's)."""
        taken = []
        while lines := self._new_lines(self.process.stdout):
            for text in lines:
                with suppress(ValueError, RecursionError):
                    line = json.loads(text)
                    if isinstance(line, dict):
                        taken.append(line)
        return taken

    def errors(self) -> list[str]:
        """Return the last lines of its standard error."""
        for line in self._new_lines(self.process.stderr):
            if line.strip():
                self._errors.append(line.decode(errors="replace").strip()[:500])
        self._rest[self.process.stderr] = self._rest[self.process.stderr][-LONGEST:]
        return list(self._errors)

    def send(self, text: str) -> None:
        """Write a line to its standard input; do nothing if it has ended."""
        with suppress(OSError, ValueError):
            self.process.stdin.write(text.encode() + b"\n")
            self.process.stdin.flush()

    def close(self, wait: bool = True) -> None:
        """End the process and its descendants at once.

        The system may be slow, for instance in freeing gigabytes. wait: until that is done, a second at most; else it
        is done in the background after a moment, see `wait_for_closed`.
        """
        if self.poll() is None:
            kill_tree(self.process)
        self._ended = True
        ending = threading.Thread(target=self._end)
        _ending.add(ending)
        ending.start()
        ending.join(None if wait or os.name == "nt" else PATIENCE)  # Windows removes no folder that is in use

    def _end(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is self.process.stdout:
                self._wait_for_output_end()
            with suppress(OSError, ValueError):
                stream.close()
        _ending.discard(threading.current_thread())

    def _wait_for_output_end(self) -> None:
        """Wait until the standard output is closed by all: locks are then free, and files closed."""
        end = time.monotonic() + GRACE
        with suppress(OSError, ValueError):
            while time.monotonic() < end:
                try:
                    if not os.read(self.process.stdout.fileno(), LONGEST):
                        return
                except BlockingIOError:
                    time.sleep(0.001)


def wait_for_closed() -> None:
    """Wait until all processes that were closed here have ended, so that their locks are free."""
    for ending in list(_ending):
        ending.join(3 * GRACE)


def kill_tree(process: subprocess.Popen) -> None:
    """End a process of `Child` and its descendants."""
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
    wait_for_closed()
