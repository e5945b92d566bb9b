"""Run the self-tests of both modules and end the application; exit status 0 means that all passed.

Slicer --no-splash --testing --additional-module-paths Speckle2Self SpeckleTrain --python-script run_self_tests.py
Testing/headless-slicer --main-window --testing Testing/run_self_tests.py
"""

import importlib
import traceback

import slicer

MODULES = ("Speckle2Self", "SpeckleTrain")


def passes(name: str) -> bool:
    """Open the module's panel and run its self-test; print errors."""
    try:
        slicer.util.selectModule(name)
        if slicer.util.selectedModule() != name:  # Slicer only logs that it did not load a module
            raise RuntimeError(f"The module {name} was not loaded.")
        getattr(importlib.import_module(name), f"{name}Test")().runTest()
    except Exception:
        traceback.print_exc()
        return False
    return True


failed = [name for name in MODULES if not passes(name)]
print(f"Self-tests that failed: {', '.join(failed)}" if failed else f"Self-tests passed: {', '.join(MODULES)}")
slicer.util.exit(1 if failed else 0)
