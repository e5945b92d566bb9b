"""`PythonSlicer`: not Python itself but CTK's launcher, which starts it and remains its parent.

Its exit code is Python's; where Python crashes or is killed it is 1, after a line on standard error. Standard input and
output are Python's own. A kill of the process group ends both, a kill of only the launcher leaves Python running.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

SCRIPT = """#!/bin/sh
exec {python} -I -S -c '
import subprocess, sys
code = subprocess.call([sys.executable] + sys.argv[1:])
if code < 0:
    sys.stderr.write("error: [" + sys.executable + "] exit abnormally - Report the problem.\\n")
sys.exit(1 if code < 0 else code)
' "$@"
"""


def install(folder: Path) -> Path:
    """Create a PythonSlicer in the folder `bin` of `folder`, put it first on the PATH, as Slicer's own launcher does
    for all programs started by the application, and make it `sys.executable`."""
    program = folder / "bin" / "PythonSlicer"
    program.parent.mkdir()
    program.write_text(SCRIPT.format(python=shlex.quote(sys.executable)))
    program.chmod(0o755)
    os.environ["PATH"] = os.pathsep.join((str(program.parent), os.environ.get("PATH", "")))
    sys.executable = str(program)
    return program
