"""The interface to the system: errors, whole files, locks, memory and torchrun. Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FilePath = str | os.PathLike[str]
Progress = Callable[[int, int], None]  # called with (done, total)


class InputError(ValueError):
    """The user's input cannot be used. The message is one sentence: what is wrong and what to do."""


def _(sentence: str) -> str:
    """Mark a sentence for translation, and return it unchanged: panels translate it, see `words.translate_sentence`."""
    return sentence


INSTALLED_AS = {"PIL": "pillow", "skimage": "scikit-image"}  # packages whose names differ from their modules'
CANNOT_WRITE = _("{path} cannot be written: {reason}.")


def with_path(path: FilePath, error: Exception) -> str:
    """Prefix an error message with its file name, unless it already starts with it."""
    return f"{path}: {str(error).removeprefix(f'{path} ')}"


class Cancelled(Exception):
    """The caller requested a stop; nothing was written."""


def torchrun_place() -> tuple[int, int, int]:
    """Return the number of this process among those that torchrun has started, the same on this host, and their count.

    (0, 0, 1) without torchrun. Raises InputError if only some of its variables are set.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 0, 1
    try:
        rank, local, count = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        _ = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    except (KeyError, ValueError) as error:
        raise InputError("WORLD_SIZE is set, but not by torchrun: start with torchrun, or unset it.") from error
    return rank, local, count


def keep_memory() -> None:
    """Keep freed memory, up to 256 MB, for later allocations; only for our own processes.

    Otherwise GNU's allocator returns the arrays of each block of frames to the system and requests them again, which
    costs a tenth of the time. On other systems, do nothing.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # constants of malloc.h
        set_option(mmap_threshold, 2**25)  # bytes; the largest value that it accepts
        set_option(trim_threshold, 2**28)
        set_option(top_pad, 2**24)


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that there is not enough memory, here, on a graphics card or for threads."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    said = ("out of memory", "can't allocate", "Unable to allocate", "not enough memory", "can't start new thread")
    return getattr(error, "errno", None) == errno.ENOMEM or any(words in str(error) for words in said)


def missing_package(error: Exception) -> str | None:
    """Return one sentence if an error means that a third-party package is not installed; None for other errors."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or error.name.startswith("Speckle2Self"):
        return None
    name = error.name.partition(".")[0]
    name = INSTALLED_AS.get(name, name)
    return _("The package {name} is missing; install it: python -m pip install {name}.").format(name=name)


def torch_fault() -> str | None:
    """Return one sentence if PyTorch is missing or does not start; None if it starts."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return _("PyTorch is missing; install it: python -m pip install torch.")
        return _broken(error)
    except (ImportError, OSError, RuntimeError) as error:  # one of its libraries is missing, or of another version
        return _broken(error)
    return None


def _broken(error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(" .")
    message = _(
        "PyTorch is installed, but does not start ({reason}); reinstall it, in Slicer with the PyTorch extension."
    )
    return message.format(reason=reason)


def replace_file(path: FilePath, content: bytes) -> None:
    """Write a file whole or not at all: into a temporary one in the same folder, then renamed.

    Raises InputError where the folder does not exist or cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(CANNOT_WRITE.format(path=path, reason=error.strerror or error)) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


@contextmanager
def file_lock(path: FilePath) -> Iterator[None]:
    """Reserve a file that is slow to write for this process: hold the system's lock on `<path>.lock`.

    The lock ends with the process, however that ends; a file that remains locks nothing. File systems without locks
    are accepted. Raises InputError if another process holds the lock, or the folder does not exist or cannot be
    written.
    """
    lock = Path(f"{path}.lock")
    try:
        file = lock.open("ab")
    except OSError as error:
        raise InputError(CANNOT_WRITE.format(path=lock, reason=error.strerror or error)) from error
    with file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            message = _("Another process is writing {path}; wait until it has ended.")
            raise InputError(message.format(path=path)) from error
        except OSError:
            pass  # no locks here
        try:
            yield
        finally:
            file.close()  # first: Windows cannot remove open files
            with suppress(OSError):
                lock.unlink()
