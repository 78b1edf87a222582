"""What the check says of good and bad ZIP files, code by code."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.limits import DEFAULT_LIMITS
from finetune_queue.datasets.report import RULES, DatasetReport
from support.checks import GOOD_SIZE, check, codes, good_files
from support.images import image_bytes, make_dataset_zip, make_zip

# As in a worker, where the module under test sets this filter; pytest resets the filters for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def test_nothing_to_say_about_a_good_archive(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "good.zip", good_files())
    report = check(path)
    assert report.findings == ()
    assert report.ok
    assert (report.images, report.captions, report.bytes) == (6, 6, path.stat().st_size)
    assert report.short_sides == (1024, 1024)
    assert report.sha256 is not None
    assert DatasetReport.model_validate_json(report.model_dump_json()) == report


def animation() -> bytes:
    frames = [Image.open(io.BytesIO(image_bytes(seed, GOOD_SIZE))) for seed in (1, 2)]
    target = io.BytesIO()
    frames[0].save(target, "WEBP", save_all=True, append_images=frames[1:])
    return target.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return image_bytes(1, GOOD_SIZE, exif=exif)


def transparent() -> bytes:
    image = Image.new("RGBA", GOOD_SIZE, (200, 30, 30, 120))
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


def inner_zip() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a.txt", "a")
    return target.getvalue()


def many_scans() -> bytes:
    data = image_bytes(1, GOOD_SIZE, progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:-2] + data[scan:-2] * 200 + data[-2:]


ENTRIES: list[tuple[str, str, bytes | Callable[[], bytes]]] = [  # pictures are made late: every process collects this
    ("archive_nested", "more.zip", inner_zip),
    ("archive_nested", "photos.jpg", b"\x1f\x8b\x08\x00" + bytes(20)),
    ("archive_nested", "all.tar", bytes(257) + b"ustar" + bytes(250)),
    ("entry_unsafe_path", "../escape.jpg", b"x"),
    ("entry_unsafe_path", "a/../../escape.jpg", b"x"),
    ("entry_unsafe_path", "/etc/passwd", b"x"),
    ("entry_unsafe_path", "C:/windows.jpg", b"x"),
    ("entry_unsafe_path", "C:file.jpg", b"x"),
    ("entry_unsafe_path", "folder\\photo.jpg", b"x"),
    ("entry_unsafe_path", "a//b.jpg", b"x"),
    ("entry_unsafe_path", "./b.jpg", b"x"),
    ("entry_unsafe_path", "evil\x1b[2J.jpg", b"x"),
    ("entry_unsafe_path", "ü" * 130 + ".jpg", b"x"),
    ("image_unreadable", "broken.jpg", b"not a picture"),
    ("image_unreadable", "empty.png", b""),
    ("image_unreadable", "cut.jpg", lambda: image_bytes(9, GOOD_SIZE)[:-2000]),
    ("image_unreadable", "cut.png", lambda: image_bytes(9, GOOD_SIZE, "PNG")[:-2000]),
    ("image_unreadable", "cut.webp", lambda: image_bytes(9, GOOD_SIZE, "WEBP")[:-500]),
    ("image_unreadable", "head.png", lambda: image_bytes(9, GOOD_SIZE, "PNG")[:20]),
    ("image_unsupported", "scan.tif", lambda: image_bytes(9, GOOD_SIZE, "TIFF")),
    ("image_unsupported", "phone.jpg", b"\x00\x00\x00\x18ftypheic" + bytes(40)),
    ("image_unsupported", "drawing.svg", b"<svg/>"),
    ("image_small", "p9.jpg", lambda: image_bytes(9, (511, 2000))),
    ("image_small", "thin.jpg", lambda: image_bytes(9, (6, 400))),
    ("image_below_1024", "p9.jpg", lambda: image_bytes(9, (1023, 1100))),
    ("image_odd_shape", "p9.jpg", lambda: image_bytes(9, (1024, 3200))),
    ("image_duplicate", "p9.jpg", lambda: image_bytes(0, GOOD_SIZE)),
    ("image_near_duplicate", "p9.jpg", lambda: image_bytes(0, GOOD_SIZE, quality=40)),
    ("image_near_duplicate", "p9.png", lambda: image_bytes(0, (2048, 2048), "PNG")),
    ("image_near_duplicate", "p9.webp", lambda: image_bytes(0, (700, 700), "WEBP")),
    ("image_near_duplicate", "p9.gif", lambda: image_bytes(0, GOOD_SIZE, "GIF")),
    ("image_format", "p9.bmp", lambda: image_bytes(9, GOOD_SIZE, "BMP")),
    ("image_format", "p9.gif", lambda: image_bytes(9, GOOD_SIZE, "GIF")),
    ("image_suffix", "p9.png", lambda: image_bytes(9, GOOD_SIZE)),
    ("image_suffix", "p9.data", lambda: image_bytes(9, GOOD_SIZE)),
    ("image_suffix", "p9", lambda: image_bytes(9, GOOD_SIZE)),
    ("image_cmyk", "p9.jpg", lambda: image_bytes(9, GOOD_SIZE, mode="CMYK")),
    ("image_rotated", "p9.jpg", turned),
    ("image_animated", "p9.webp", animation),
    ("image_transparent", "p9.png", transparent),
    ("image_too_large", "p9.jpg", many_scans),
    ("caption_not_text", "p9.txt", "1MAN läuft".encode("latin-1")),
    ("caption_not_text", "p9.txt", b"1MAN\x00\x00"),
    ("caption_not_text", "p9.txt", lambda: image_bytes(9)),
    ("caption_empty", "p9.txt", b" \n"),
    ("caption_long", "p9.txt", b"1MAN " * 1000),
    ("caption_orphan", "nobody.txt", b"1MAN"),
    ("caption_without_trigger", "p9.txt", b"a 1MANX walks"),
    ("caption_placeholder", "p9.txt", b"a [trigger] walks"),
    ("caption_missing", "p9.jpg", lambda: image_bytes(9, GOOD_SIZE)),
    ("file_ignored", "metadata.jsonl", b"{}"),
    ("folders_inside", "10_man/p9.jpg", lambda: image_bytes(9, GOOD_SIZE)),
]


@pytest.mark.parametrize(("code", "name", "data"), ENTRIES, ids=[f"{code}-{name!a}"[:60] for code, name, _ in ENTRIES])
def test_one_bad_entry_is_found_and_named(
    tmp_path: Path, code: str, name: str, data: bytes | Callable[[], bytes]
) -> None:
    content = data() if callable(data) else data
    report = check(make_zip(tmp_path / "a.zip", {**good_files(), name: content}))
    found = [each for each in report.findings if each.code == code]
    assert len(found) == 1, report.findings
    assert found[0].file is not None
    assert found[0].file.isprintable()
    assert found[0].file[:5] == name.encode("unicode_escape").decode()[:5] or "ü" in name or "\\" in name
    assert report.ok == (RULES[code].severity != "error")


def test_plain_pictures_of_other_colours_are_not_alike(tmp_path: Path) -> None:
    colours = {f"{grey}.png": Image.new("RGB", GOOD_SIZE, (grey, 90, 90)) for grey in (0, 40, 80, 120, 160)}
    files = {}
    for name, image in colours.items():
        target = io.BytesIO()
        image.save(target, "PNG")
        files[name] = target.getvalue()
    assert codes(check(make_zip(tmp_path / "a.zip", files))) == {"no_captions"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_pixel_can_be_looked_at(tmp_path: Path, mode: str) -> None:
    image = Image.open(io.BytesIO(image_bytes(3, GOOD_SIZE))).convert("L" if mode == "I;16" else mode)
    target = io.BytesIO()
    (image.convert("I").convert("I;16") if mode == "I;16" else image).save(target, "PNG")
    report = check(make_zip(tmp_path / "a.zip", {"a.png": target.getvalue()}))
    assert (report.ok, report.images) == (True, 1)


def test_the_other_files_count_although_one_is_bad(tmp_path: Path) -> None:
    report = check(make_zip(tmp_path / "a.zip", {**good_files(), "broken.jpg": b"no"}))
    assert (report.images, report.captions, report.ok) == (6, 6, False)


def test_the_trigger_word_counts_in_any_case_and_beside_punctuation(tmp_path: Path) -> None:
    files = good_files()
    files["p0.txt"] = b"(1man), at noon"
    assert check(make_zip(tmp_path / "a.zip", files)).findings == ()


def test_a_caption_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    files = good_files()
    files["p0.txt"] = b"\xef\xbb\xbf1MAN walks"
    assert check(make_zip(tmp_path / "a.zip", files)).findings == ()


def test_a_prompt_without_the_trigger_word(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", good_files())
    report = check_archive(path, trigger_word="1MAN", instance_prompt="a man in a suit")
    assert codes(report) == {"prompt_without_trigger"}
    assert check_archive(path, instance_prompt="a man in a suit").findings == ()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("a man", "is more than one word"),
        (" ohwx\tman", "is more than one word"),
        ("Person", "is a common word"),
        (" the ", "is a common word"),
    ],
)
def test_a_trigger_word_that_the_model_knows_is_no_error(tmp_path: Path, word: str, why: str) -> None:
    files = {name: word.encode() if name.endswith(".txt") else data for name, data in good_files().items()}
    report = check_archive(make_zip(tmp_path / "a.zip", files), trigger_word=word, instance_prompt=f"photo of {word}")
    assert report.ok
    [found] = report.findings
    assert (found.code, found.severity, found.file) == ("trigger_common", "warning", None)
    assert found.message.endswith(f'" {why}.')


def test_too_few_and_too_many_images(tmp_path: Path) -> None:
    assert codes(check(make_zip(tmp_path / "few.zip", good_files(4)))) == {"few_images"}
    small = make_dataset_zip(tmp_path / "many.zip", count=51)
    assert "many_images" in codes(check(small))


def test_images_without_any_caption_are_only_noted(tmp_path: Path) -> None:
    files = {name: data for name, data in good_files().items() if name.endswith(".jpg")}
    report = check(make_zip(tmp_path / "a.zip", files))
    assert codes(report) == {"no_captions"}
    assert report.ok


def test_what_systems_leave_behind_is_named_and_skipped(tmp_path: Path) -> None:
    junk = {"__MACOSX/._p0.jpg": b"\0", ".DS_Store": b"\0", "Thumbs.db": b"\0", "desktop.ini": b"", "Icon\r": b""}
    report = check(make_zip(tmp_path / "a.zip", {**good_files(), **junk}))
    assert [each.code for each in report.findings] == ["junk"]
    assert "__MACOSX/._p0.jpg, .DS_Store, Thumbs.db and 2 more" in report.findings[0].message
    assert report.ok


def test_folder_entries_are_no_files(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"empty/": b"", **good_files()})
    assert check(path).findings == ()


def test_what_is_refused_is_still_the_image_or_the_caption_of_the_other(tmp_path: Path) -> None:
    files = {"a.jpg": b"broken", "a.txt": b"1MAN", "b.jpg": image_bytes(9, GOOD_SIZE), "b.txt": b"1MAN\xff"}
    files |= {"c.heic": b"\x00\x00\x00\x18ftypheic" + bytes(40), "c.txt": b"1MAN"}
    report = check(make_zip(tmp_path / "a.zip", {**files, **good_files()}))
    assert codes(report) == {"image_unreadable", "image_unsupported", "caption_not_text"}


def test_the_limits_of_a_check(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", good_files())
    for limits, code in (
        (replace(DEFAULT_LIMITS, max_entries=11), "archive_too_many_entries"),
        (replace(DEFAULT_LIMITS, max_entry_bytes=1000), "entry_too_large"),
        (replace(DEFAULT_LIMITS, max_inflated_bytes=1000), "archive_bomb"),
        (replace(DEFAULT_LIMITS, max_pixels=1_000_000), "image_too_large"),
        (replace(DEFAULT_LIMITS, max_total_pixels=3_000_000), "images_too_large"),
        (replace(DEFAULT_LIMITS, max_seconds=0.0), "check_too_slow"),
    ):
        report = check(path, limits)
        assert code in codes(report)
        assert not report.ok


def test_a_report_stays_short_and_says_what_it_left_out(tmp_path: Path) -> None:
    files = {f"file{number}.json": b"{}" for number in range(200)}
    report = check(make_zip(tmp_path / "a.zip", {**good_files(), **files}))
    assert len(report.findings) == DEFAULT_LIMITS.max_findings_per_code
    assert report.omitted == {"file_ignored": 200 - DEFAULT_LIMITS.max_findings_per_code}
    assert report.count("warning") == 200
    few = check(make_zip(tmp_path / "b.zip", {**files, "bad.jpg": b""}), replace(DEFAULT_LIMITS, max_findings=3))
    assert len(few.findings) == 3
    assert few.findings[0].severity == "error"
    assert sum(few.omitted.values()) + 3 == few.count("error") + few.count("warning") + few.count("note")


def test_a_report_is_small_json_whatever_the_names_are(tmp_path: Path) -> None:
    files = {f"{'x' * 240}/{number}\u202egpj.exe": b"{}" for number in range(300)}
    report = check(make_zip(tmp_path / "a.zip", files))
    text = report.model_dump_json()
    assert len(text) < 30_000
    assert "\u202e" not in text
    assert json.loads(text)["ok"] is False


def test_every_code_of_the_catalogue_is_raised_by_a_test() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert {code for code in RULES if f'"{code}"' not in source} == set()
