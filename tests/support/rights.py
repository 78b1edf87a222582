"""Root as an ordinary owner of files, so that a test of missing rights runs for root as well."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)): what lets root read and write everything."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def file_modes_count() -> Iterator[None]:
    """Let the modes of files hold for this thread, also if it is root's (Linux)."""
    if os.geteuid() != 0:
        yield
        return
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _call("capget", header, sets)
    before = sets[0].effective
    sets[0].effective = before & ~_OVERRIDES
    _call("capset", header, sets)
    try:
        yield
    finally:
        sets[0].effective = before
        _call("capset", header, sets)


def _call(name: str, header: _Header, sets: "ctypes.Array[_Sets]") -> None:
    if ctypes.CDLL(None, use_errno=True)[name](ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), name)
