"""A process that ends with another one, whatever it is doing at that moment."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import wait


def end_with_main() -> None:
    """In a process that multiprocessing has started: end with the main process, also when that is killed.

    A process of Python's notices that end when it next reads from the main one. One that is in compiled code which
    never returns would stay for ever, with its memory and its GPU, and would keep the fork server too. Neither a
    signal handler nor a thread helps there, as both need the interpreter. Its parent's death tells nothing: that is
    the fork server.
    """
    main = multiprocessing.parent_process()
    if main is not None:
        end_with_pipe(main.sentinel)


def end_with_pipe(pipe: int) -> None:
    """Let the kernel kill this process as soon as nobody is left who could write into a pipe; on Linux alone.

    Args:
        pipe: its end to read from, into which nothing is written any more.
    """
    if sys.platform != "linux":
        return
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)  # instead of SIGIO, which may be ignored
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if wait([pipe], 0):  # that was so before
        os._exit(1)
