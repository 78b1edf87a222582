"""Reading a ZIP that may be hostile: its list of files, and the files' bytes, without writing anything to disk.

The standard library parses the list (the central directory), through a view of the file that refuses reads longer than
a dataset's list can need. The files are inflated here: the library trusts the sizes that the archive states, and here
the real bytes are counted, of each entry and of all together.
"""

import io
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_queue.datasets.limits import Limits
from finetune_queue.datasets.names import display_name, unsafe_path
from finetune_queue.datasets.report import Collector
from finetune_queue.plain_words import byte_size
from finetune_queue.progress import OnProgress

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_FLAG_ENCRYPTED = 0x1
_FLAG_STRONG_ENCRYPTION = 0x40
_FLAG_MASKED_HEADER = 0x2000
_FLAG_UTF8 = 0x800
_END_RECORD_MAX = 22 + 0xFFFF
_CHUNK = 1 << 16
_RATIO_FROM = 1_000_000
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, ArithmeticError, EOFError, IndexError)
"""What the standard library raises for a broken list of files (found by mutating archives)."""

_OTHER_KINDS = (
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"PK", "a ZIP file"),
)


class ArchiveRefusedError(Exception):
    """The archive as a whole is refused; nothing more of it is read."""

    def __init__(self, code: str, message: str, file: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = file


class EntryRefusedError(Exception):
    """One entry is refused; the others are still looked at."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the archive that may be read: `start` is where its compressed bytes begin."""

    name: str
    start: int
    info: zipfile.ZipInfo


class Meter:
    """Counts what a check has inflated and how long it has run, over all entries."""

    def __init__(self, limits: Limits, on_progress: OnProgress | None = None) -> None:
        self.limits = limits
        self._on_progress = on_progress
        self._inflated = 0
        self._until = time.monotonic() + limits.max_seconds

    def tick(self) -> None:
        """Report the progress, and check that there is time left.

        Raises:
            ArchiveRefusedError: the time is over.
        """
        if self._on_progress is not None:
            self._on_progress(self._inflated, None)
        if time.monotonic() > self._until:
            raise ArchiveRefusedError("check_too_slow", f"The check took more than {self.limits.max_seconds:g} s.")

    def add(self, count: int, entry: Entry, so_far: int) -> None:
        """Count `count` more inflated bytes of `entry`, which has now given `so_far`.

        Raises:
            ArchiveRefusedError: a bomb, or the time is over.
        """
        self.tick()
        self._inflated += count
        if self._inflated > self.limits.max_inflated_bytes:
            raise ArchiveRefusedError(
                "archive_bomb",
                f"The files inflate to more than {byte_size(self.limits.max_inflated_bytes)}.",
                entry.name,
            )
        if so_far > _RATIO_FROM and so_far > self.limits.max_ratio * max(1, entry.info.compress_size):
            raise ArchiveRefusedError(
                "archive_bomb", f"It inflates to more than {self.limits.max_ratio} times its size.", entry.name
            )


def other_kind(head: bytes) -> str | None:
    """Return what kind of archive begins with these bytes, in words, or None; a tar file takes 262 bytes to tell."""
    if head[257:262] == b"ustar":
        return "a tar file"
    return next((words for magic, words in _OTHER_KINDS if head.startswith(magic)), None)


class _BoundedView:
    """The file as `zipfile` sees it: reads of more than `limit` bytes are refused before any memory is taken."""

    def __init__(self, file: io.BufferedReader, size: int, limit: int) -> None:
        self._file = file
        self._size = size
        self._limit = limit

    def read(self, count: int = -1, /) -> bytes:
        rest = max(0, self._size - self._file.tell())
        wanted = rest if count < 0 else min(count, rest)
        if wanted > self._limit:
            raise ArchiveRefusedError("archive_too_many_entries", "The ZIP's list of files is far too long.")
        return self._file.read(wanted)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        target = offset + (0, self._file.tell(), self._size)[whence]
        if target < 0:
            # An OSError as a real file raises it, but one that can be told from a failing disk.
            raise _SeekError
        return self._file.seek(min(target, self._size))

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


class _SeekError(OSError, zipfile.BadZipFile):
    """A position before the start of the file. `zipfile` handles OSError in one place; elsewhere the list is
    damaged."""


def read_entries(file: io.BufferedReader, size: int, limits: Limits, collector: Collector) -> list[Entry]:
    """Return the files of the archive that may be read, in the order of its list; the others become findings.

    Raises:
        ArchiveRefusedError: it is no ZIP, or is one that should not be read any further.
        OSError: the file cannot be read.
    """
    infos = _read_list(file, size, limits)
    if len(infos) > limits.max_entries:
        raise ArchiveRefusedError(
            "archive_too_many_entries", f"The ZIP has {len(infos)} files; {limits.max_entries} are allowed."
        )
    entries: list[Entry] = []
    names: set[str] = set()
    for info in infos:
        name = info.orig_filename
        if name in names:
            collector.add("entry_repeated", "Two files in the ZIP have this name.", name)
            continue
        names.add(name)
        try:
            entry = _entry(file, size, info)
        except EntryRefusedError as refused:
            collector.add(refused.code, refused.message, name)
            continue
        if not info.is_dir():
            entries.append(entry)
        elif info.file_size:
            collector.add("entry_damaged", "It is named like a folder, but has content.", name)
    _refuse_overlap(entries)
    return entries


def _read_list(file: io.BufferedReader, size: int, limits: Limits) -> list[zipfile.ZipInfo]:
    if size == 0:
        raise ArchiveRefusedError("archive_empty", "The file is empty.")
    file.seek(0)
    head = file.read(512)
    view = _BoundedView(file, size, max(limits.max_directory_bytes, _END_RECORD_MAX))
    try:
        with zipfile.ZipFile(view) as archive:
            infos: list[zipfile.ZipInfo] = archive.infolist()
    except _DAMAGED as error:
        if head.startswith(b"PK"):
            raise ArchiveRefusedError(
                "archive_damaged",
                "The file starts as a ZIP, but its list of files cannot be read: it may be truncated.",
            ) from error
        raise ArchiveRefusedError("archive_not_zip", f"The file is {_describe(head)}, not a ZIP.") from error
    if not infos:
        raise ArchiveRefusedError("archive_empty", "The ZIP has no files in it.")
    return infos


def _describe(head: bytes) -> str:
    if kind := other_kind(head):
        return kind
    if head.lstrip()[:1] == b"<":
        return "a web page (the link may lead to a page about the file, or to a login)"
    return "something else"


def _entry(file: io.BufferedReader, size: int, info: zipfile.ZipInfo) -> Entry:
    """Check what the list says of one file, and that the file's own header agrees."""
    name = info.orig_filename
    if reason := unsafe_path(name):
        raise EntryRefusedError("entry_unsafe_path", f"This path is not safe to unpack: {reason}.")
    if info.flag_bits & (_FLAG_ENCRYPTED | _FLAG_STRONG_ENCRYPTION | _FLAG_MASKED_HEADER):
        raise EntryRefusedError("entry_encrypted", "The file is encrypted.")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "a device or pipe"
        raise EntryRefusedError("entry_link", f"The entry is {what}, not a file.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise EntryRefusedError(
            "entry_method", f"It is compressed with method {info.compress_type}, which few tools read."
        )
    start = _data_start(file, size, info)
    if start + info.compress_size > size:
        raise EntryRefusedError("entry_damaged", "Its bytes reach past the end of the ZIP.")
    return Entry(name=name, start=start, info=info)


def _data_start(file: io.BufferedReader, size: int, info: zipfile.ZipInfo) -> int:
    """Return where the compressed bytes begin, by the entry's own header, which must agree with the list."""
    if not 0 <= info.header_offset <= size - _LOCAL_HEADER.size:
        raise EntryRefusedError("entry_damaged", "The list of files points outside the ZIP.")
    file.seek(info.header_offset)
    fields = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    signature, flags, method, name_length, extra_length = fields[0], fields[2], fields[3], fields[9], fields[10]
    if signature != _LOCAL_SIGNATURE:
        raise EntryRefusedError("entry_damaged", "There is no file where the list of files says.")
    raw = file.read(name_length)
    name = raw.decode("utf-8" if flags & _FLAG_UTF8 else "cp437", "replace")
    if name != info.orig_filename or method != info.compress_type or (flags ^ info.flag_bits) & _FLAG_ENCRYPTED:
        raise EntryRefusedError(
            "entry_damaged", f"Its own header disagrees with the list of files (it says {display_name(name)!r})."
        )
    return int(info.header_offset + _LOCAL_HEADER.size + name_length + extra_length)


def _refuse_overlap(entries: list[Entry]) -> None:
    """Refuse bytes that belong to two files: so a small ZIP inflates without end (Fifield, "A better zip bomb")."""
    end = 0
    for entry in sorted(entries, key=lambda each: each.info.header_offset):
        if entry.info.header_offset < end:
            raise ArchiveRefusedError("archive_overlap", "Two files in the ZIP share the same bytes.", entry.name)
        end = entry.start + entry.info.compress_size


def inflate(file: io.BufferedReader, entry: Entry, meter: Meter) -> Iterator[bytes]:
    """Yield the bytes of one file, in pieces of at most 64 KiB, checked against its stated size and CRC at the end.

    Raises:
        EntryRefusedError: damaged, or too large.
        ArchiveRefusedError: a bomb, or the check takes too long.
    """
    count = 0
    crc = 0
    limit = meter.limits.max_entry_bytes
    for piece in _pieces(file, entry):
        count += len(piece)
        meter.add(len(piece), entry, count)
        if count > limit:
            raise EntryRefusedError("entry_too_large", f"The file is larger than {byte_size(limit)}.")
        crc = zlib.crc32(piece, crc)
        yield piece
    if count != entry.info.file_size or crc != entry.info.CRC:
        raise EntryRefusedError("entry_damaged", "Its size or checksum is not the one that the ZIP states.")


def _pieces(file: io.BufferedReader, entry: Entry) -> Iterator[bytes]:
    file.seek(entry.start)
    if entry.info.compress_type == zipfile.ZIP_STORED:
        return _stored(file, entry.info.compress_size)
    return _deflated(file, entry.info.compress_size)


def _stored(file: io.BufferedReader, left: int) -> Iterator[bytes]:
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise EntryRefusedError("entry_damaged", "The ZIP ends inside it.")
        left -= len(chunk)
        yield chunk


def _deflated(file: io.BufferedReader, left: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while not inflater.eof:
        chunk = inflater.unconsumed_tail
        if not chunk:
            chunk = file.read(min(_CHUNK, left))
            left -= len(chunk)
        try:
            piece = inflater.decompress(chunk, _CHUNK)
        except zlib.error as error:
            raise EntryRefusedError("entry_damaged", "Its compressed bytes are broken.") from error
        if piece:
            yield piece
        elif not chunk:
            raise EntryRefusedError("entry_damaged", "Its compressed bytes end too early.")
    if left or inflater.unused_data:
        raise EntryRefusedError("entry_damaged", "There are stray bytes after its compressed bytes.")
