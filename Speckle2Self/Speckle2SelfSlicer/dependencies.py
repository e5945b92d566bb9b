"""The Python packages that Slicer does not bundle, installed on first use and with the user's consent; and errors."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec

import slicer

from Speckle2SelfLib.config import InputError

# Imported name -> what to install. PyTorch is not among them: the PyTorch extension chooses its build.
PACKAGES = {
    "safetensors": "safetensors>=0.4",
    "scipy": "scipy>=1.11",
    "skimage": "scikit-image>=0.22",
}
REQUESTER = "Speckle2Self"


@contextmanager
def shownErrors(message: str, waitCursor: bool = False):
    """Tells the user what goes wrong: a sentence of ours as it is, anything else with `message` and details."""
    with slicer.util.tryWithErrorDisplay(message, waitCursor=waitCursor):
        try:
            yield
        except InputError as error:
            slicer.util.errorDisplay(str(error))


def missing() -> list[str]:
    """Imported names of the packages that are not installed."""
    return [name for name in ("torch", *PACKAGES) if find_spec(name) is None]


def ensure() -> None:
    """Installs what is missing, after asking; does nothing where all is there.

    Raises InputError where something is still missing afterwards.
    """
    if "torch" in missing():
        _installTorch()
    requirements = [PACKAGES[name] for name in missing() if name in PACKAGES]
    if requirements:
        _install(requirements)
    if missing():
        raise InputError(f"Python packages are missing: {', '.join(missing())}; install them and try again.")


def _installTorch() -> None:
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        message = "PyTorch is missing; install the PyTorch extension in the Extensions Manager and restart Slicer."
        raise InputError(message) from error
    PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True)


def _install(requirements: list[str]) -> None:
    try:
        from slicer.packaging import pip_ensure  # Slicer 5.11 and later; it asks by itself
    except ImportError:
        question = f"{REQUESTER} needs to install {', '.join(requirements)}. Install now?"
        if slicer.util.confirmOkCancelDisplay(question, REQUESTER):
            slicer.util.pip_install(requirements)
        return
    try:
        pip_ensure(requirements, requester=REQUESTER)
    except RuntimeError as error:
        message = f"{REQUESTER} cannot run without {', '.join(requirements)}: {error}."
        raise InputError(message) from error
