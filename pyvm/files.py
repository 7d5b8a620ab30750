"""Opening files that others name: never reads a device, which may have no end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader


def open_to_read(path: str | os.PathLike[str], *, wait: bool = True) -> BufferedReader:
    """Opens a regular file, or a pipe.

    Parameters
    ----------
    path : path
        What to open.
    wait : bool
        Whether opening a pipe waits for somebody who opens it for writing; else it is empty until then.

    Raises
    ------
    OSError
        If it cannot be opened, or is neither.
    ValueError
        If no file can have that path.
    """

    def opener(name: str, flags: int) -> int:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode) and not stat.S_ISDIR(mode):  # of folders, `open` says so
            raise OSError(errno.EINVAL, "neither a regular file nor a pipe", name)
        # What was looked at can be replaced before it is opened: by a pipe, which is not waited for.
        return os.open(name, flags if wait and stat.S_ISFIFO(mode) else flags | os.O_NONBLOCK)

    return open(path, "rb", opener=opener)


def is_regular(file: BufferedReader) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
