"""Files that are written as a whole or not at all; devices and pipes are written to."""

from __future__ import annotations

import os
import stat
from contextlib import suppress


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write the file at ``path`` (the target, if it is a link). The mode and the owner of one that is there stay.

    What is there and no regular file, such as a device or a pipe, is not replaced: the data go into it. A pipe waits
    for its reader.

    Raises:
        OSError: the folder or the file can't be written. A regular file that was there is then as it was.
    """
    if _is_stream(path):  # before links are resolved: what /dev/stdout leads to may have no name
        with os.fdopen(os.open(path, os.O_WRONLY), "wb") as stream:
            stream.write(data)
        return
    import tempfile  # not at the top: few runs write, and it costs a fifth of the linter's start-up time

    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(21, "this is a folder, not a file", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "there is no such folder", folder)
    before = os.stat(path) if os.path.lexists(path) else None
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(13, "the file is read-only", path)
    descriptor, temporary = tempfile.mkstemp(prefix=".esper-guard-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            with suppress(OSError, AttributeError):  # the owner, where we may set it
                os.chown(temporary, before.st_uid, before.st_gid)
        os.chmod(temporary, _new_mode() if before is None else stat.S_IMODE(before.st_mode))
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _is_stream(path: str | os.PathLike[str]) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing is there, or it can't be told
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _new_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
