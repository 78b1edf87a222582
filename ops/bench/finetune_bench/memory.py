"""How much memory processes took at their peak, read from /proc (Linux; proc(5))."""

from pathlib import Path

_PROC = Path("/proc")


def session_of(leader: int) -> list[int]:
    """Return the processes of the session that ``leader`` leads, itself included."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        # The name in parentheses may hold anything: what follows the last one is state, parent, group, session.
        if int(stat.rpartition(")")[2].split()[3]) == leader:
            found.append(int(folder.name))
    return found


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
