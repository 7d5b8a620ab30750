"""Opening files that others name: never reads a device, which may have no end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader


def open_to_read(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a regular file, or a pipe: that waits for somebody who opens it for writing.

    Raises
    ------
    OSError
        If it cannot be opened, or is neither.
    ValueError
        If no file can have that path.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode) and not stat.S_ISDIR(mode):  # of folders, `open` says so
        raise OSError(errno.EINVAL, "neither a regular file nor a pipe", os.fspath(path))
    return open(path, "rb")  # without an opener in Python, which a signal could end with a descriptor that nobody owns


def is_regular(file: BufferedReader) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
