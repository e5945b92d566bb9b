"""`slicer.packaging`: Python packages that Slicer does not bundle. Here nothing is ever installed: installing
raises RuntimeError, unless a test replaces it."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

import slicer
from packaging.requirements import Requirement


def load_requirements(path) -> list[Requirement]:
    """Return the requirements of a file, without comments and options."""
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def _requirements(given) -> list[Requirement]:
    if isinstance(given, str):
        given = given.split()
    return [Requirement(str(one)) for one in (given if isinstance(given, list | tuple) else [given])]


def pip_check(req) -> bool:
    """Return whether all requirements are installed in a suitable version."""
    for wanted in _requirements(req):
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            if version(wanted.name) not in wanted.specifier:
                return False
        except PackageNotFoundError:
            return False
    return True


def pip_ensure(requirements, constraints=None, skip_packages=None, prompt_install=True, prompt_restart=True,
               requester=None, skip_in_testing=True, show_progress=True):  # fmt: skip
    """Install missing packages after asking; do nothing in testing mode. Raises RuntimeError if the user declines."""
    missing = [str(wanted) for wanted in _requirements(requirements) if not pip_check(wanted)]
    if not missing:
        return
    if skip_in_testing and slicer.app.testingEnabled():
        logging.info(f"Testing mode is enabled: skipping pip_ensure for [{', '.join(missing)}]")
        return
    if prompt_install:
        title = f"{requester} - Install Python Packages" if requester else "Install Python Packages"
        question = f"{len(missing)} Python packages need to be installed.\n\n"
        question += "This will modify Slicer's Python environment. Continue?"
        if not slicer.util.confirmOkCancelDisplay(question, title, detailedText="\n".join(missing)):
            raise RuntimeError("User declined package installation")
    pip_install(missing, requester=requester)


def pip_install(requirements, **kwargs):
    """Raise RuntimeError, where the application would install."""
    raise RuntimeError(f"Nothing is installed by the stand-in of Slicer: {requirements}")


pip_uninstall = pip_install
