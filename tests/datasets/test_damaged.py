"""Archives that are no ZIP, are damaged, or say one thing and hold another."""

import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_queue.datasets.errors import DatasetError
from support.checks import check, codes, good_files
from support.images import make_zip


def test_words_and_no_images(tmp_path: Path) -> None:
    report = check(make_zip(tmp_path / "a.zip", {"a.txt": b"1MAN"}))
    assert codes(report) == {"no_images", "caption_orphan"}
    assert not report.ok


def test_an_empty_zip_and_an_empty_file(tmp_path: Path) -> None:
    for path in (make_zip(tmp_path / "a.zip", {}), tmp_path / "b.zip"):
        path.touch()
        report = check(path)
        assert [each.code for each in report.findings] == ["archive_empty"]
        assert not report.ok


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "a web page"),
        (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (bytes(300), "something else"),
    ],
)
def test_what_is_no_zip_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    report = check(path)
    assert [each.code for each in report.findings] == ["archive_not_zip"]
    assert says in report.findings[0].message


def test_a_zip_that_was_cut_off(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", good_files())
    path.write_bytes(path.read_bytes()[:-100])
    assert codes(check(path)) == {"archive_damaged"}


def test_a_file_of_100_mb_is_not_even_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    report = check(path)
    assert codes(report) == {"archive_too_large"}
    assert report.sha256 is None
    with path.open("wb") as file:
        file.truncate(99_999_999)
    assert codes(check(path)) == {"archive_not_zip"}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        check(tmp_path / "nothing.zip")
    assert caught.value.code == "dataset_not_found"
    with pytest.raises(DatasetError) as caught:
        check(tmp_path)
    assert caught.value.code == "dataset_unreadable"


def patched(path: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """The archive with the last entry's local and central headers at the given offsets changed."""
    data = bytearray(path.read_bytes())
    change(data, data.rindex(b"PK\x03\x04"), data.rindex(b"PK\x01\x02"))
    path.write_bytes(data)
    return path


def test_an_encrypted_entry(tmp_path: Path) -> None:
    def encrypt(data: bytearray, local: int, central: int) -> None:
        data[local + 6] |= 1
        data[central + 8] |= 1

    report = check(patched(make_zip(tmp_path / "a.zip", good_files()), encrypt))
    assert [(each.code, each.file) for each in report.findings if each.severity == "error"] == [
        ("entry_encrypted", "p5.txt")
    ]


def test_an_unusual_compression_method(tmp_path: Path) -> None:
    report = check(make_zip(tmp_path / "a.zip", good_files(), zipfile.ZIP_LZMA))
    assert "entry_method" in codes(report)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    path = make_zip(tmp_path / "a.zip", good_files())
    link = zipfile.ZipInfo("link.jpg")
    link.create_system = 3
    link.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert ("entry_link", "link.jpg") in [(each.code, each.file) for each in check(path).findings]


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", good_files())
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("p0.txt", "1MAN")
    assert ("entry_repeated", "p0.txt") in [(each.code, each.file) for each in check(path).findings]


def crc(data: bytearray, local: int, central: int) -> None:
    data[central + 16] ^= 1


def stated_size(data: bytearray, local: int, central: int) -> None:
    data[central + 24 : central + 28] = struct.pack("<L", 3)


def header_name(data: bytearray, local: int, central: int) -> None:
    data[local + 30] = ord("q")


def header_place(data: bytearray, local: int, central: int) -> None:
    data[central + 42 : central + 46] = struct.pack("<L", local + 1)


def far_away(data: bytearray, local: int, central: int) -> None:
    data[central + 42 : central + 46] = struct.pack("<L", 2**31)


def too_long(data: bytearray, local: int, central: int) -> None:
    data[central + 20 : central + 24] = struct.pack("<L", 2**31)


def compressed_bytes(data: bytearray, local: int, central: int) -> None:
    data[local + 36] = 0xFF


def stray_bytes(data: bytearray, local: int, central: int) -> None:
    size = struct.unpack("<L", data[central + 20 : central + 24])[0]
    data[central + 20 : central + 24] = struct.pack("<L", size + 1)


def missing_bytes(data: bytearray, local: int, central: int) -> None:
    size = struct.unpack("<L", data[central + 20 : central + 24])[0]
    data[central + 20 : central + 24] = struct.pack("<L", size - 1)


@pytest.mark.parametrize(
    "change",
    [crc, stated_size, header_name, header_place, far_away, too_long, compressed_bytes, stray_bytes, missing_bytes],
)
def test_an_entry_that_is_not_what_the_list_says(tmp_path: Path, change: Callable[[bytearray, int, int], None]) -> None:
    report = check(patched(make_zip(tmp_path / "a.zip", good_files()), change))
    assert [(each.code, each.file) for each in report.findings if each.severity == "error"] == [
        ("entry_damaged", "p5.txt")
    ]


def test_a_folder_with_bytes_of_its_own(tmp_path: Path) -> None:
    report = check(make_zip(tmp_path / "a.zip", {**good_files(), "folder/": b"hidden"}))
    assert ("entry_damaged", "folder/") in [(each.code, each.file) for each in report.findings]
