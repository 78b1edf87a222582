"""Run a command that dies with the process that started it: `python leash.py PARENT_PID COMMAND...`.

A program of its own, started between parent and command, because Python code between fork and exec is not safe in a
parent that has threads. Linux only; elsewhere the command runs without the leash.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # Stays in force after exec (prctl(2)). SIGKILL, as nobody is left to send it after a signal that is not heeded.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the leash was on
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - a fixed argument list, no shell


if __name__ == "__main__":
    main()
