"""Install the Python packages that Slicer does not bundle, or may bundle in too old a version, on first use and with
the user's consent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError

import slicer
from slicer.i18n import tr as _

from Speckle2SelfLib.system import InputError

# The packages to install, and their import names if these differ. PyTorch is not among them: the PyTorch extension
# chooses its build.
REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"
IMPORTED_AS = {"scikit-image": "skimage", "pillow": "PIL"}
READERS = {"av": "av>=12", "h5py": "h5py>=3.10"}  # requirements by import name, for packages that only some files need
REQUESTER = "Speckle2Self"
_lock = threading.Lock()  # one installation at a time


def packages() -> dict[str, str]:
    """Return the requirements to install, by import name."""
    lines = (line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    wanted = {line.split(">=")[0]: line for line in lines if line and not line.startswith("#")}
    return {IMPORTED_AS.get(name, name): line for name, line in wanted.items()}


def missing_packages() -> list[str]:
    """Return the import names of the packages that are not installed."""
    return [name for name in ("torch", *packages()) if find_spec(name) is None]


def missing_in_testing() -> list[str]:
    """Return the packages that a self-test lacks but must not install: in testing mode Slicer does not ask, and would
    install nothing or download gigabytes."""
    return missing_packages() if slicer.app.testingEnabled() else []


def ensure() -> None:
    """Install missing packages, after asking; do nothing if all are installed.

    Raises InputError if something is still missing afterwards, or if called during an installation: Slicer processes
    events in the meantime.
    """
    with _installing():
        if find_spec("torch") is None:
            _installTorch()
        if find_spec("torch") is not None:
            _install(packages())
    if missing_packages():
        raise InputError(
            _("Python packages are missing: {missing}; install them and try again.").format(
                missing=", ".join(missing_packages())
            )
        )


def ensure_reader(name: str) -> None:
    """Install one of `READERS`, after asking, if it is missing. Raises InputError like `ensure`."""
    if find_spec(name) is not None:
        return
    with _installing():
        _install({name: READERS[name]})
    if find_spec(name) is None:
        message = _("This file needs the Python package {name}; load the file again and agree to the installation.")
        raise InputError(message.format(name=name))


@contextmanager
def _installing() -> Iterator[None]:
    if not _lock.acquire(blocking=False):
        raise InputError(_("Python packages are being installed; wait until the installation ends."))
    try:
        yield
    finally:
        _lock.release()


def _installTorch() -> None:
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        message = _("PyTorch is missing; install the PyTorch extension in the Extensions Manager and restart Slicer.")
        raise InputError(message) from error
    PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True)


def _install(wanted: dict[str, str]) -> None:
    """Install packages (import name -> requirement) after asking. Raises InputError if packages are missing after the
    user declined or the installation failed."""
    try:
        _installByPip(wanted)
    except (RuntimeError, CalledProcessError) as error:
        lacking = [name for name in wanted if find_spec(name) is None]
        if lacking:  # otherwise the user keeps an older version
            message = _("{requester} cannot run without {missing}: {error}.").format(
                requester=REQUESTER, missing=", ".join(lacking), error=error
            )
            raise InputError(message) from error


def _installByPip(wanted: dict[str, str]) -> None:
    try:
        from slicer.packaging import pip_ensure  # Slicer 5.11 and later
    except ImportError:
        lacking = [requirement for name, requirement in wanted.items() if find_spec(name) is None]
        question = _("{requester} needs to install {wanted}. Install now?").format(
            requester=REQUESTER, wanted=", ".join(lacking)
        )
        if lacking and slicer.util.confirmOkCancelDisplay(question, REQUESTER):
            slicer.util.pip_install(lacking)
    else:
        pip_ensure(list(wanted.values()), requester=REQUESTER)  # asks, and checks versions
