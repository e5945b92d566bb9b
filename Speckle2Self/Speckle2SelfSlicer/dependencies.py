"""The Python packages that Slicer does not bundle, or may bundle in too old a version, installed on first use and with
the user's consent; and errors."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import slicer

from Speckle2SelfLib.system import InputError

# What to install, and what of it is imported under another name. PyTorch is not among them: the PyTorch extension
# chooses its build.
REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"
IMPORTED_AS = {"scikit-image": "skimage"}
REQUESTER = "Speckle2Self"
_one = threading.Lock()  # installation at a time


@contextmanager
def shownErrors(message: str, waitCursor: bool = False):
    """Tells the user what goes wrong: a sentence of ours as it is, anything else with `message` and details."""
    with slicer.util.tryWithErrorDisplay(message, waitCursor=waitCursor):
        try:
            yield
        except InputError as error:
            slicer.util.errorDisplay(str(error))


def packages() -> dict[str, str]:
    """Imported name -> what to install."""
    lines = (line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    wanted = {line.split(">=")[0]: line for line in lines if line and not line.startswith("#")}
    return {IMPORTED_AS.get(name, name): line for name, line in wanted.items()}


def missing() -> list[str]:
    """Imported names of the packages that are not installed."""
    return [name for name in ("torch", *packages()) if find_spec(name) is None]


def ensure() -> None:
    """Installs what is missing, after asking; does nothing where all is there.

    Raises InputError where something is still missing afterwards, and where it is called while it installs: Slicer lets
    events happen meanwhile.
    """
    if not _one.acquire(blocking=False):
        raise InputError("Python packages are being installed; wait until that is done.")
    try:
        if find_spec("torch") is None:
            _installTorch()
        if find_spec("torch") is not None:
            _install()
    finally:
        _one.release()
    if missing():
        raise InputError(f"Python packages are missing: {', '.join(missing())}; install them and try again.")


def _installTorch() -> None:
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        message = "PyTorch is missing; install the PyTorch extension in the Extensions Manager and restart Slicer."
        raise InputError(message) from error
    PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True)


def _install() -> None:
    try:
        from slicer.packaging import load_requirements, pip_ensure  # Slicer 5.11 and later
    except ImportError:
        wanted = [requirement for name, requirement in packages().items() if find_spec(name) is None]
        question = f"{REQUESTER} needs to install {', '.join(wanted)}. Install now?"
        if wanted and slicer.util.confirmOkCancelDisplay(question, REQUESTER):
            slicer.util.pip_install(wanted)
        return
    try:
        pip_ensure(load_requirements(REQUIREMENTS), requester=REQUESTER)  # it asks by itself, and sees versions too
    except RuntimeError as error:
        if missing():  # else there is an older version, which the user wants to keep
            message = f"{REQUESTER} cannot run without {', '.join(missing())}: {error}."
            raise InputError(message) from error
