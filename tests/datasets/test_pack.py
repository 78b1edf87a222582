"""From a folder to a ZIP: the same bytes each time, clear words for what does not fit."""

import errno
import os
import random
import shutil
import stat
import unicodedata
import zipfile
from pathlib import Path

import pytest

from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.pack import PackedDataset, pack
from support.images import image_bytes, make_dataset_folder, make_zip
from support.rights import file_modes_count

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
"""A PNG of one red pixel, written down so that no encoder's version can change the hash below."""


def names(packed: PackedDataset) -> list[str]:
    with zipfile.ZipFile(packed.path) as archive:
        return archive.namelist()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_the_same_files_give_the_same_bytes_everywhere(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"b.png": PIXEL, "a.png": PIXEL + b"2", "a.txt": b"1MAN", "sub/c.txt": b"c"})
    packed = pack(folder, tmp_path / "a.zip")
    assert packed.sha256 == "f378f2d10ace2c62aaf464d997f99f849d9c4b0c8bbf32642e3d3f1aec233335"
    assert names(packed) == ["a.png", "a.txt", "b.png", "c.txt"]


def test_order_times_and_modes_do_not_matter(tmp_path: Path) -> None:
    first = make_dataset_folder(tmp_path / "first")
    files = sorted(first.iterdir())
    random.Random(7).shuffle(files)
    second = tmp_path / "second"
    second.mkdir()
    for number, path in enumerate(files):
        copy = Path(shutil.copyfile(path, second / path.name))
        copy.chmod(0o600)
        os.utime(copy, (number, number))
    assert pack(first, tmp_path / "1.zip").sha256 == pack(second, tmp_path / "2.zip").sha256


def test_a_packed_folder_passes_the_check(tmp_path: Path) -> None:
    folder = make_dataset_folder(tmp_path / "images")
    packed = pack(folder, tmp_path / "a.zip")
    report = check_archive(packed.path, trigger_word="1MAN")
    assert report.ok
    assert (report.images, report.captions) == (6, 6)
    assert (report.sha256, report.bytes) == (packed.sha256, packed.path.stat().st_size)
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert archive.read(info) == (folder / info.filename).read_bytes()


def test_only_what_gains_from_it_is_deflated(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"a.bmp": image_bytes(1, (200, 200), "BMP"), "b.jpg": image_bytes(1)})
    with zipfile.ZipFile(pack(folder, tmp_path / "a.zip").path) as archive:
        assert {info.filename: info.compress_type for info in archive.infolist()} == {
            "a.bmp": zipfile.ZIP_DEFLATED,
            "b.jpg": zipfile.ZIP_STORED,
        }


def test_junk_and_strangers_are_left_out_and_named(tmp_path: Path) -> None:
    strangers = {
        ".DS_Store": b"",
        "__MACOSX/._a.png": b"",
        ".git/config": b"",
        "model.safetensors": b"0",
        "old.zip": b"PK",
    }
    packed = pack(write(tmp_path / "a", {"a.png": PIXEL, **strangers}), tmp_path / "a.zip")
    assert names(packed) == ["a.png"]
    assert [each.code for each in packed.notes] == ["left_out"]
    assert packed.notes[0].message == "Left out of the ZIP: .git/, __MACOSX/, .DS_Store and 2 more."


def test_an_image_is_known_by_its_content_or_its_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"picture": PIXEL, "broken.jpg": b"no", "phone.heic": b"no"})
    assert names(pack(folder, tmp_path / "a.zip")) == ["broken.jpg", "phone.heic", "picture"]


def test_folders_of_kohya_are_flattened(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"10_man/a.png": PIXEL, "10_man/a.txt": b"1MAN", "5_face/b.png": PIXEL})
    packed = pack(folder, tmp_path / "a.zip")
    assert names(packed) == ["a.png", "a.txt", "b.png"]
    assert packed.notes == ()


def test_a_caption_in_a_folder_of_its_own_stays_with_its_image(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"images/a.png": PIXEL, "captions/a.txt": b"1MAN"})
    assert names(pack(folder, tmp_path / "a.zip")) == ["a.png", "a.txt"]


def test_repeated_names_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    files = {"a.png": PIXEL, "x/a.png": PIXEL, "x/a.txt": b"1", "y/a.jpg": PIXEL, "y/b.png": PIXEL}
    packed = pack(write(tmp_path / "a", files), tmp_path / "a.zip")
    assert names(packed) == ["a.png", "b.png", "x__a.png", "x__a.txt", "y__a.jpg"]
    assert [(each.code, each.file) for each in packed.notes] == [
        ("renamed", "x/a.png"),
        ("renamed", "x/a.txt"),
        ("renamed", "y/a.jpg"),
    ]


def test_many_renames_make_few_notes(tmp_path: Path) -> None:
    files = {f"{folder}/{number}.png": PIXEL for folder in "xy" for number in range(10)}
    packed = pack(write(tmp_path / "a", files), tmp_path / "a.zip")
    assert len(names(packed)) == 20
    assert len(packed.notes) == 4
    assert packed.notes[-1].message == "17 more files in the same way."


def test_names_that_still_clash_are_an_error(tmp_path: Path) -> None:
    files = {"x__a.png": PIXEL, "x/a.png": PIXEL, "a.png": PIXEL}
    with pytest.raises(DatasetError) as caught:
        pack(write(tmp_path / "a", files), tmp_path / "a.zip")
    assert caught.value.code == "dataset_bad_names"
    assert "x/a.png and x__a.png would both be x__a.png" in caught.value.sentence
    assert not (tmp_path / "a.zip").exists()


def test_names_are_the_same_from_macos_and_linux(tmp_path: Path) -> None:
    decomposed = write(tmp_path / "mac", {unicodedata.normalize("NFD", "é.png"): PIXEL})
    composed = write(tmp_path / "linux", {unicodedata.normalize("NFC", "é.png"): PIXEL})
    assert pack(decomposed, tmp_path / "1.zip").sha256 == pack(composed, tmp_path / "2.zip").sha256


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"a.png": PIXEL})
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(PIXEL)
    except OSError as error:
        pytest.skip(f"this file system takes only UTF-8 names ({errno.errorcode[error.errno or 0]})")
    with pytest.raises(DatasetError) as caught:
        pack(folder, tmp_path / "a.zip")
    assert caught.value.code == "dataset_bad_names"
    caught.value.sentence.encode("utf-8")


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "store", {"blob": PIXEL, "more/b.png": PIXEL})
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "a.png").symlink_to(elsewhere / "blob")
    (folder / "more").symlink_to(elsewhere / "more")
    (folder / "loop").symlink_to(folder)
    packed = pack(folder, tmp_path / "a.zip")
    assert names(packed) == ["a.png"]
    assert "loop/, more/" in packed.notes[0].message


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"a.png": PIXEL})
    (folder / "b.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"b\.png") as caught:
        pack(folder, tmp_path / "a.zip")
    assert caught.value.code == "dataset_not_found"


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"a.png": PIXEL})
    os.mkfifo(folder / "b.png")
    assert names(pack(folder, tmp_path / "a.zip")) == ["a.png"]
    with pytest.raises(DatasetError) as caught:
        pack(folder / "b.png", tmp_path / "a.zip")
    assert caught.value.code == "dataset_bad_address"


def test_a_folder_that_is_not_there_or_has_no_image(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no file or folder") as caught:
        pack(tmp_path / "nothing", tmp_path / "a.zip")
    assert caught.value.code == "dataset_not_found"
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(DatasetError, match=r"gone is a link to a file that is not there\. Fix the link"):
        pack(tmp_path / "gone", tmp_path / "a.zip")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="is empty"):
        pack(empty, tmp_path / "a.zip")
    write(empty, {"a.txt": b"words", "b.pdf": b"%PDF"})
    with pytest.raises(DatasetError, match="no image among its 2 files") as caught:
        pack(empty, tmp_path / "a.zip")
    assert caught.value.code == "dataset_empty"
    assert not (tmp_path / "a.zip").exists()


def test_a_folder_over_the_limit_says_what_to_do(tmp_path: Path) -> None:
    folder = make_dataset_folder(tmp_path / "a")
    (folder / "huge.jpg").write_bytes(image_bytes(1) + bytes(50_000))
    with pytest.raises(DatasetError) as caught:
        pack(folder, tmp_path / "a.zip", max_bytes=40_000)
    assert caught.value.code == "dataset_too_large"
    assert "huge.jpg" in caught.value.sentence
    assert "2048 pixels" in caught.value.fix
    assert list(tmp_path.iterdir()) == [folder]


def test_pictures_that_deflate_count_as_they_are_packed(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"a.bmp": image_bytes(1, (300, 300), "BMP", "L")})
    size = pack(folder, tmp_path / "a.zip").path.stat().st_size
    assert size < (folder / "a.bmp").stat().st_size
    pack(folder, tmp_path / "b.zip", max_bytes=size + 1)
    with pytest.raises(DatasetError) as caught:
        pack(folder, tmp_path / "c.zip", max_bytes=size)
    assert caught.value.code == "dataset_too_large"
    assert not (tmp_path / "c.zip").exists()


def test_pictures_that_no_check_would_unpack_are_not_written_to_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a camera's raw files, of which a folder may hold more than the disk has room for."""
    monkeypatch.setattr(zipfile, "ZipFile", None)
    for name in ("one.dng", "two.tif"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(200_000_000)
    with pytest.raises(DatasetError) as caught:
        pack(tmp_path, tmp_path / "out.zip")
    assert caught.value.code == "dataset_too_large"
    assert "400 MB of images and captions, and at most 300 MB are unpacked" in str(caught.value)
    assert "one.dng (200 MB)" in str(caught.value)


def test_a_folder_with_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_queue.datasets.pack._MAX_FILES", 5)
    with pytest.raises(DatasetError) as caught:
        pack(make_dataset_folder(tmp_path / "a"), tmp_path / "a.zip")
    assert caught.value.code == "dataset_too_large"


def test_a_zip_is_copied_as_it_is(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "mine.zip", {"a.png": PIXEL, ".DS_Store": b""})
    packed = pack(source, tmp_path / "copy.zip")
    assert packed.path.read_bytes() == source.read_bytes()
    assert packed.notes == ()
    assert pack(source, source).sha256 == packed.sha256
    with pytest.raises(DatasetError) as caught:
        pack(source, tmp_path / "b.zip", max_bytes=source.stat().st_size)
    assert caught.value.code == "dataset_too_large"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"a.png": PIXEL, "b.png": PIXEL})
    (folder / "b.png").chmod(0)
    with file_modes_count(), pytest.raises(DatasetError, match=r"b\.png") as caught:
        pack(folder, tmp_path / "a.zip")
    assert caught.value.code == "dataset_unreadable"


def test_the_folder_for_the_zip_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        pack(write(tmp_path / "a", {"a.png": PIXEL}), tmp_path / "no" / "a.zip")


def test_entries_are_plain_files_for_everyone(tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(write(tmp_path / "a", {"a.png": PIXEL}), tmp_path / "a.zip").path) as archive:
        assert archive.infolist()[0].external_attr >> 16 == stat.S_IFREG | 0o644
