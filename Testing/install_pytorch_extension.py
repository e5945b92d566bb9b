"""Installs Slicer's PyTorch extension, writes its module folder into a file, and ends the application.

Slicer --no-splash --python-script install_pytorch_extension.py FILE

For the workflow: what is tested there is found by `--testing`, which disregards installed extensions, in that folder.
"""

import sys
import traceback
from pathlib import Path

import slicer


def install(file: str) -> None:
    """Raises RuntimeError where the extension cannot be had for this release."""
    manager = slicer.app.extensionsManagerModel()
    manager.interactive = False
    if not manager.installExtensionFromServer("PyTorch", False):
        raise RuntimeError("The PyTorch extension cannot be installed.")
    folders = [folder for folder in manager.extensionModulePaths("PyTorch") if Path(folder, "PyTorchUtils.py").exists()]
    Path(file).write_text(folders[0] + "\n")


try:
    install(sys.argv[1])
    status = 0
except Exception:
    traceback.print_exc()
    status = 1
slicer.util.exit(status)
