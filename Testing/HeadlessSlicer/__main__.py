"""Run a script as Slicer does with `--no-main-window --python-script SCRIPT ARGS...`.

    headless-slicer [--additional-module-paths DIR ...] [--testing] [--main-window] SCRIPT [ARGS...]

With `--main-window` (the default in Slicer, which lacks this option), panels and views are drawn offscreen by Qt.
Unlike the application, which then waits for its last window to close, this ends with the script. The exit status
is what `slicer.util.exit` or `sys.exit` was called with, 1 after an uncaught exception, else 0.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from . import importSlicer, start


def main(arguments: list[str]) -> int:
    folders, testing, window, rest = [], False, False, list(arguments)
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        if option == "--testing":
            testing = True
        elif option == "--main-window":
            window = True
        elif option == "--additional-module-paths":
            while len(rest) > 1 and Path(rest[0]).is_dir():
                folders.append(Path(rest.pop(0)).resolve())
        else:
            print(f"headless-slicer: unknown option {option}", file=sys.stderr)
            return 2
    if not rest:
        print(
            "usage: headless-slicer [--additional-module-paths DIR ...] [--testing] [--main-window] SCRIPT [ARGS...]",
            file=sys.stderr,
        )
        return 2
    script = Path(rest[0])
    if not script.is_file():
        print(f"Specified python script doesn't exist: {script}", file=sys.stderr)
        return 1
    app = start(folders or None, ["Slicer", *arguments], testing, window)
    return run(script, rest, importSlicer(), app)


def run(script: Path, argv: list[str], slicer, app) -> int:
    """Execute the script in `__main__`, its folder first on the path; return the exit status."""
    import vtk

    names = sys.modules["__main__"].__dict__
    names.update(__file__=str(script), __name__="__main__", slicer=slicer, vtk=vtk)
    sys.argv = argv
    sys.path.insert(0, str(script.resolve().parent))
    try:
        exec(compile(script.read_bytes(), str(script), "exec"), names)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return app.exitStatus


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main(sys.argv[1:]))
