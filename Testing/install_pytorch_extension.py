"""Install Slicer's PyTorch extension and, with it, torch; write its module folder to a file; end the application.

Slicer --no-splash --python-script install_pytorch_extension.py FILE

For the workflow: its self-tests run with `--testing`, which ignores installed extensions and installs nothing, so that
they need that folder.
"""

import sys
import traceback
from pathlib import Path

import slicer


def install(file: str) -> None:
    """Install the extension. Raises RuntimeError if it is not available for this release."""
    manager = slicer.app.extensionsManagerModel()
    manager.interactive = False
    if not manager.installExtensionFromServer("PyTorch", False):
        raise RuntimeError("The PyTorch extension cannot be installed.")
    folders = [folder for folder in manager.extensionModulePaths("PyTorch") if Path(folder, "PyTorchUtils.py").exists()]
    if not folders:
        raise RuntimeError("The PyTorch extension has no PyTorchUtils.")
    sys.path.append(folders[0])  # the application finds it there after a restart
    from PyTorchUtils import PyTorchUtilsLogic

    torch = PyTorchUtilsLogic().installTorch(askConfirmation=False, forceComputationBackend="cpu")
    print(f"torch {torch.__version__} is installed.")
    Path(file).write_text(folders[0] + "\n", encoding="utf-8", newline="\n")  # read by a shell, also on Windows


try:
    install(sys.argv[1])
    status = 0
except Exception:
    traceback.print_exc()
    status = 1
slicer.util.exit(status)
