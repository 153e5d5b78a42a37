"""Standard output and standard error whose loss ends no command.

A pipe's reader may exit, a disk may be full, a terminal may be closed, or a stream may be closed
from the start (`2>&-`). A command's results are its files: it continues, and output that can't be
written is dropped.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

_output_fault: OSError | None = None  # the first one of standard output, a gone reader apart


class _Descriptor(io.RawIOBase):
    """Writes to a file descriptor, and drops what can't be written."""

    def __init__(self, number: int):
        self._number = number

    def write(self, data: Any) -> int:
        """Reports all of it as written."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            try:
                left = left[os.write(self._number, left) :]
            except BlockingIOError:  # another process has made the same pipe non-blocking
                select.select([], [self._number], [])
            except OSError as error:
                if self._number == 1:
                    _note_output_fault(error)
                break
        return size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)


def keep_streams_alive() -> None:
    """Replaces standard output and standard error by streams that never fail, for this process.

    They also print any character: one that the encoding lacks appears as an escape such as `\\xe9`.
    A closed stream becomes `/dev/null`, since the next file that is opened would take its number,
    and a library or a child process that writes to standard error would write into that file.
    Streams that somebody has put there already (a test, a notebook) stay.
    """
    global _output_fault
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
            os.set_inheritable(null, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is None and number == 1:
            _output_fault = OSError(errno.EBADF, os.strerror(errno.EBADF))
        alive = io.TextIOWrapper(
            _Descriptor(number),  # type: ignore[arg-type]  # raw: nothing waits in a buffer of it
            encoding=stream.encoding if stream is not None else "utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, alive)


def output_fault() -> OSError | None:
    """Why not all of standard output was written; None if it was, or if its reader wanted no more
    (`| head`)."""
    return _output_fault


def _note_output_fault(error: OSError) -> None:
    global _output_fault
    if _output_fault is None and error.errno != errno.EPIPE:
        _output_fault = error
        print(f"warning: standard output: {error.strerror}; goes on without it", file=sys.stderr)
