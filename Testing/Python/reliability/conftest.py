"""Some of these tests run in the stand-in of the application, over real MRML."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if find_spec("slicer") is not None:  # else the tests skip themselves
    import HeadlessSlicer

    HeadlessSlicer.start(testing=True, window=True)
