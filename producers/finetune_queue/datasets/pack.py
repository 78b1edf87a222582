"""A folder of images becomes a ZIP: the same files give the same bytes, on any machine and at any time.

So the hash of the ZIP names the dataset. Names are sorted, times and modes fixed. Files are stored without compression,
as its result depends on the version of zlib; only pictures that would be far too large are deflated (BMP, TIFF).
"""

import hashlib
import os
import shutil
import stat
import tempfile
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.images import COMPRESSED_FORMATS, HEAD_BYTES, sniff
from finetune_queue.datasets.limits import DEFAULT_LIMITS, MAX_ARCHIVE_BYTES, TAKE_LESS
from finetune_queue.datasets.names import (
    CAPTION_SUFFIX,
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    display_name,
    is_junk,
    some_of,
    stem_of,
    suffix_of,
)
from finetune_queue.datasets.report import Finding, finding
from finetune_queue.home_path import home_path
from finetune_queue.plain_words import byte_size

_MAX_FILES = 20_000
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = (stat.S_IFREG | 0o644) << 16
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class PackedDataset:
    """A ZIP to be checked and sent. `notes` say which files of the folder were left out or renamed."""

    path: Path
    sha256: str
    notes: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    """Relative to the folder, with slashes, in composed form (NFC), as macOS and Linux differ there."""
    path: Path
    size: int
    kind: str | None

    @property
    def base(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def is_image(self) -> bool:
        return self.kind is not None or suffix_of(self.name) in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES


def local_path(source: str) -> Path:
    """Return the folder or ZIP on this machine that a person named, `~` included.

    Raises:
        DatasetError: it is a URL, or empty.
    """
    if not source:
        raise DatasetError("dataset_bad_address", "No folder or ZIP is named.", "The current folder is `.`.")
    if "://" in source:
        raise DatasetError(
            "dataset_bad_address",
            f"{display_name(source)} is not a folder or ZIP on this machine.",
            "A job takes https://, s3://, gs://, az:// and file:// URLs; a check needs the file itself.",
        )
    return home_path(source)


@contextmanager
def packed(source: str) -> Iterator[PackedDataset]:
    """Pack the folder or ZIP that a person named, see :func:`local_path`, into a file that is removed after the block.

    Raises:
        DatasetError: as :func:`pack`, or nothing can be written on this machine.
    """
    try:
        made = tempfile.mkdtemp(prefix="finetune-")
    except OSError as error:
        raise DatasetError(
            "dataset_unreadable",
            f"There is no temporary folder to pack it in: {error.strerror}.",
            "Name one that can be written in TMPDIR.",
            retryable=True,
        ) from error
    try:
        yield pack(local_path(source), Path(made) / "dataset.zip")
    finally:
        shutil.rmtree(made, ignore_errors=True)


def pack(source: Path, destination: Path, *, max_bytes: int = MAX_ARCHIVE_BYTES) -> PackedDataset:
    """Pack a folder into the ZIP `destination`, or copy a ZIP there as it is. The file appears at once and whole.

    Folders inside (as kohya's `10_token`) are flattened. Links to files are followed, links to folders are not.

    Raises:
        DatasetError: no such source, no image in it, names that clash, or `max_bytes` or more.
    """
    try:
        found = source.stat()
        if stat.S_ISDIR(found.st_mode):
            return _pack_folder(source, destination, max_bytes)
        if not stat.S_ISREG(found.st_mode):
            raise DatasetError(
                "dataset_bad_address",
                f"{_shown(source)} is neither a file nor a folder.",
                "Give a ZIP file or a folder.",
            )
        return _copy(source, destination, found.st_size, max_bytes)
    except FileNotFoundError as error:
        missing = Path(error.filename or source)
        sentence, fix = f"There is no file or folder {_shown(missing)}.", "Check the path."
        if missing.is_symlink():
            sentence, fix = f"{_shown(missing)} is a link to a file that is not there.", "Fix the link, or remove it."
        raise DatasetError("dataset_not_found", sentence, fix) from error
    except OSError as error:
        raise DatasetError(
            "dataset_unreadable",
            f"{_shown(Path(error.filename or source))} cannot be used: {error.strerror or error}.",
            "Check its permissions and the free space, then try again.",
            retryable=True,
        ) from error


def _copy(source: Path, destination: Path, size: int, max_bytes: int) -> PackedDataset:
    if size >= max_bytes:
        raise DatasetError(
            "dataset_too_large",
            f"{_shown(source)} is {byte_size(size)}; the API takes ZIP files under {byte_size(max_bytes)}.",
            TAKE_LESS,
        )
    with _written(destination) as target, source.open("rb") as file:
        shutil.copyfileobj(file, target)
    return _packed(destination, ())


def _pack_folder(source: Path, destination: Path, max_bytes: int) -> PackedDataset:
    files, left_out = _scan(source)
    if not any(each.is_image for each in files):
        seen = len(files) + len(left_out)
        what = "is empty" if not seen else f"has no image among its {seen} files"
        raise DatasetError(
            "dataset_empty", f"The folder {_shown(source)} {what}.", "Put JPEG, PNG or WebP images into it."
        )
    total = sum(each.size for each in files if _stored(each))
    if total >= max_bytes:
        raise _too_large(source, files, _makes(total, max_bytes))
    # How small the deflated files get is not known yet. But more than the check would unpack need not be packed.
    whole, most = sum(each.size for each in files), DEFAULT_LIMITS.max_inflated_bytes
    if whole > most:
        said = f"has {byte_size(whole)} of images and captions, and at most {byte_size(most)} are unpacked"
        raise _too_large(source, files, said)
    named, renamed = _flatten(files)
    with _written(destination) as target:
        with zipfile.ZipFile(target, "w") as archive:
            for name, each in named:
                _add(archive, name, each)
        size = target.tell()
        if size >= max_bytes:
            raise _too_large(source, files, _makes(size, max_bytes))
    omitted = [finding("left_out", f"Left out of the ZIP: {some_of(left_out)}.")] if left_out else []
    return _packed(destination, (*omitted, *renamed))


def _scan(source: Path) -> tuple[list[_File], list[str]]:
    """Return what belongs into the ZIP, and the names of what does not."""
    files: list[_File] = []
    left_out: list[str] = []
    for folder, folders, names in os.walk(source, onerror=_raise):
        here = Path(folder)
        folders.sort()
        for name in sorted(folders):
            if is_junk(name) or (here / name).is_symlink():
                folders.remove(name)
                left_out.append(f"{(here / name).relative_to(source).as_posix()}/")
        for name in sorted(names):
            path = here / name
            relative = path.relative_to(source).as_posix()
            file = None if is_junk(name) else _file(path, relative)
            if file is None:
                left_out.append(relative)
            else:
                files.append(file)
            if len(files) + len(left_out) > _MAX_FILES:
                raise DatasetError(
                    "dataset_too_large",
                    f"The folder {_shown(source)} has more than {_MAX_FILES} files.",
                    "Give the folder that holds the training images and nothing else.",
                )
    return files, left_out


def _raise(error: OSError) -> None:
    raise error


def _file(path: Path, relative: str) -> _File | None:
    """Return the file, or None when it is neither an image nor a caption."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return None
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(
            "dataset_bad_names", f"The name {display_name(relative)} is not UTF-8.", "Rename the file."
        ) from error
    with path.open("rb") as file:
        kind = sniff(file.read(HEAD_BYTES))
    name = unicodedata.normalize("NFC", relative)
    each = _File(name=name, path=path, size=found.st_size, kind=kind)
    return each if each.is_image or suffix_of(name) == CAPTION_SUFFIX else None


def _flatten(files: list[_File]) -> tuple[list[tuple[str, _File]], list[Finding]]:
    """Give each file a name at the top of the ZIP, sorted; where names repeat, the folder becomes part of them."""
    by_stem: dict[str, list[_File]] = defaultdict(list)
    for each in files:
        by_stem[stem_of(each.base)].append(each)
    named: dict[str, _File] = {}
    notes: list[Finding] = []
    for group in by_stem.values():
        bases = [each.base for each in group]
        image_folders = {each.folder for each in group if each.is_image}
        # A caption in a folder of its own still belongs to the one image of its name.
        clash = len(set(bases)) < len(bases) or len(image_folders) > 1
        for each in group:
            name = each.name.replace("/", "__") if clash else each.base
            if clash and each.folder:
                notes.append(finding("renamed", f"In the ZIP it is {display_name(name)}.", each.name))
            if name in named:
                raise DatasetError(
                    "dataset_bad_names",
                    f"{display_name(named[name].name)} and {display_name(each.name)} would both be "
                    f"{display_name(name)} in the ZIP.",
                    "Rename one of them.",
                )
            named[name] = each
    return sorted(named.items()), _shortened(notes)


def _stored(each: _File) -> bool:
    return each.kind in COMPRESSED_FORMATS or suffix_of(each.name) == CAPTION_SUFFIX


def _add(archive: zipfile.ZipFile, name: str, each: _File) -> None:
    info = zipfile.ZipInfo(name, _FIRST_DATE)
    info.create_system = 3
    info.external_attr = _MODE
    info.compress_type = zipfile.ZIP_STORED if _stored(each) else zipfile.ZIP_DEFLATED
    with each.path.open("rb") as file, archive.open(info, "w") as target:
        shutil.copyfileobj(file, target)


@contextmanager
def _written(destination: Path) -> Iterator[IO[bytes]]:
    """Open a file that becomes `destination` when the block ends well, and is gone when it does not."""
    with tempfile.NamedTemporaryFile(dir=destination.parent, prefix=f".{destination.name}.", delete=False) as target:
        part = Path(target.name)
        try:
            yield target
            target.flush()
            part.replace(destination)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _packed(path: Path, notes: tuple[Finding, ...]) -> PackedDataset:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PackedDataset(path=path, sha256=digest, notes=notes)


def _makes(size: int, max_bytes: int) -> str:
    return f"makes a ZIP of {byte_size(size)}; the API takes less than {byte_size(max_bytes)}"


def _too_large(source: Path, files: list[_File], said: str) -> DatasetError:
    largest = sorted(files, key=lambda each: each.size, reverse=True)[:_SHOWN]
    named = ", ".join(f"{display_name(each.name)} ({byte_size(each.size)})" for each in largest)
    return DatasetError(
        "dataset_too_large",
        f"{_shown(source)} {said}. Its largest files: {named}.",
        TAKE_LESS,
    )


def _shortened(notes: list[Finding]) -> list[Finding]:
    more = len(notes) - _SHOWN
    return notes if more <= 0 else [*notes[:_SHOWN], finding("renamed", f"{more} more files in the same way.")]


def _shown(path: Path) -> str:
    return display_name(str(path))
