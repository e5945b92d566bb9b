"""Installs Slicer's PyTorch extension and, by it, torch; writes its module folder into a file; ends the application.

Slicer --no-splash --python-script install_pytorch_extension.py FILE

For the workflow: its self-tests run with `--testing`, which disregards installed extensions, so that they are given
that folder, and which installs nothing.
"""

import sys
import traceback
from pathlib import Path

import slicer


def install(file: str) -> None:
    """Raise RuntimeError where the extension cannot be had for this release."""
    manager = slicer.app.extensionsManagerModel()
    manager.interactive = False
    if not manager.installExtensionFromServer("PyTorch", False):
        raise RuntimeError("The PyTorch extension cannot be installed.")
    folders = [folder for folder in manager.extensionModulePaths("PyTorch") if Path(folder, "PyTorchUtils.py").exists()]
    if not folders:
        raise RuntimeError("The PyTorch extension has no PyTorchUtils.")
    sys.path.append(folders[0])  # the application finds it there by itself once it is started again
    from PyTorchUtils import PyTorchUtilsLogic

    torch = PyTorchUtilsLogic().installTorch(askConfirmation=False, forceComputationBackend="cpu")
    print(f"torch {torch.__version__} is installed.")
    Path(file).write_text(folders[0] + "\n", encoding="utf-8", newline="\n")  # a shell reads it, on Windows too


try:
    install(sys.argv[1])
    status = 0
except Exception:
    traceback.print_exc()
    status = 1
slicer.util.exit(status)
