"""What processes have used, read from /proc (Linux; proc(5))."""

import os
from pathlib import Path

_PROC = Path("/proc")


def session_of(leader: int) -> list[int]:
    """Return the processes of the session that ``leader`` leads, itself included."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        stat = _stat(int(folder.name))
        if stat and int(stat[3]) == leader:
            found.append(int(folder.name))
    return found


def cpu_of_session(leader: int) -> float:
    """Return the seconds of CPU that a process and all that it started have used; of those that still run."""
    ticks = 0
    for stat in map(_stat, session_of(leader)):
        ticks += sum(map(int, stat[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on (0 state, 3 session, 11 and 12 CPU ticks); none if it is gone.

    They follow the last parenthesis: the name before it may hold anything.
    """
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def peak(pid: int) -> int:
    """Return the most memory that the process ever had resident, in bytes; 0 if it is gone."""
    return _field(pid, "VmHWM")


def resident(pid: int) -> int:
    """Return the memory that the process has resident now, in bytes; 0 if it is gone."""
    return _field(pid, "VmRSS")


def peak_of_session(leader: int) -> int:
    """Return the sum of the peaks of a process and all that it started."""
    return sum(map(peak, session_of(leader)))


def _field(pid: int, name: str) -> int:
    try:
        text = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
