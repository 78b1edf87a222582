"""Archives made to hurt: whatever the bytes, a report comes back, soon and without much memory."""

import io
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL.PngImagePlugin import PngImageFile

from finetune_queue.datasets import images
from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.limits import Limits
from finetune_queue.datasets.report import RULES, DatasetReport
from support.images import image_bytes, make_dataset_zip, make_zip

# As in a worker, where the module under test sets this filter; pytest resets the filters for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

SMALL = Limits(max_entries=50, max_inflated_bytes=1_000_000, max_entry_bytes=200_000, max_pixels=100_000, max_seconds=5)
MEMORY_MB = 120


def codes(report: DatasetReport) -> list[str]:
    return [each.code for each in report.findings if each.severity == "error"]


def png_of_zeros(width: int, height: int) -> bytes:
    """A picture that is tiny as a file and huge in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * min(height, 2_000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp_that_claims(width: int, height: int) -> bytes:
    """An extended WebP header that asks for a huge canvas, with a small picture behind it."""
    inner = image_bytes(1, (16, 16), "WEBP")[12:]
    canvas = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    body = b"WEBP" + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def list_of_files(count: int) -> bytes:
    """A ZIP that is nothing but a list of `count` files without bytes."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, 0, 0)
    return entry * count + end


def overlapping() -> bytes:
    """Two entries of one list that both point at the same bytes, under the same name in another folder's spelling."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a.jpg", image_bytes(1))
        archive.writestr("b.jpg", image_bytes(2))
    data = bytearray(target.getvalue())
    first, second = data.index(b"PK\x01\x02"), data.rindex(b"PK\x01\x02")
    # The first file is said to reach over the second one.
    data[first + 20 : first + 24] = data[first + 24 : first + 28] = struct.pack("<L", 60 + len(image_bytes(1)))
    assert second > first
    return bytes(data)


def bomb(size: int) -> dict[str, bytes]:
    return {f"{number}.bmp": bytes(size) for number in range(3)}


def test_a_bomb_of_zeros(tmp_path: Path) -> None:
    report = check_archive(make_zip(tmp_path / "a.zip", bomb(30_000_000)))
    assert codes(report) == ["archive_bomb"]


def test_a_bomb_hidden_in_junk(tmp_path: Path) -> None:
    report = check_archive(make_zip(tmp_path / "a.zip", {"__MACOSX/a": bytes(30_000_000)}))
    assert codes(report) == ["archive_bomb"]


def test_a_bomb_that_states_a_small_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.bmp": bytes(30_000_000)})
    data = bytearray(path.read_bytes())
    for place in (data.index(b"PK\x03\x04") + 22, data.index(b"PK\x01\x02") + 24):
        data[place : place + 4] = struct.pack("<L", 100)
    path.write_bytes(data)
    assert codes(check_archive(path)) == ["archive_bomb"]


def test_entries_that_share_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(overlapping())
    assert codes(check_archive(path)) == ["archive_overlap"]


@pytest.mark.parametrize("count", [3_000, 300_000])
def test_a_list_of_files_without_end(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(list_of_files(count))
    assert codes(check_archive(path)) == ["archive_too_many_entries"]


def test_pictures_that_claim_more_pixels_than_memory(tmp_path: Path) -> None:
    files = {
        "a.png": png_of_zeros(60_000, 60_000),
        "b.png": png_of_zeros(12_000, 12_000),
        "c.png": png_of_zeros(8_000, 8_000),
        "d.webp": webp_that_claims(16_383, 16_383),
        "e.webp": webp_that_claims(7_000, 7_000),
    }
    report = check_archive(make_zip(tmp_path / "a.zip", files))
    assert codes(report) == ["image_too_large"] * 4 + ["image_unreadable", "no_images"]


def jpeg_of_pieces(count: int) -> bytes:
    """A small photo behind very many empty segments."""
    photo = image_bytes(1)
    return photo[:2] + b"\xff\xe5\x00\x02" * count + photo[2:]


def png_with_exif(tags: int, size: int) -> bytes:
    """A small picture whose EXIF has so many tags, all of them the same `size` bytes."""
    photo = image_bytes(1, kind="PNG")
    start = 8 + 2 + 12 * tags + 4
    exif = b"II*\0" + struct.pack("<IH", 8, tags)
    exif += b"".join(struct.pack("<HHII", 1000 + number, 7, size, start) for number in range(tags)) + bytes(4 + size)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return photo[:33] + chunk + photo[33:]


def gif_with_comment(blocks: int) -> bytes:
    photo = image_bytes(1, kind="GIF")
    palette = 13 + 3 * (2 << (photo[10] & 7))
    return photo[:palette] + b"\x21\xfe" + (b"\xff" + b"A" * 255) * blocks + b"\0" + photo[palette:]


def test_metadata_without_end_costs_no_time(tmp_path: Path) -> None:
    files = {"a.gif": gif_with_comment(40_000), "b.png": png_with_exif(200, 1_000_000)}
    began = time.process_time()
    assert check_archive(make_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED)).ok
    assert time.process_time() - began < 2


def test_a_picture_of_very_many_pieces(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.jpg": jpeg_of_pieces(400_000)}, zipfile.ZIP_STORED)
    assert codes(check_archive(path)) == ["image_unreadable", "no_images"]


def test_a_large_picture_is_decoded_while_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = threading.Lock()
    monkeypatch.setattr(images, "_ONE_LARGE_IMAGE_AT_A_TIME", alone)
    monkeypatch.setattr(images, "_LARGE_PIXELS", 0)
    decoded = []
    load = PngImageFile.load

    def watched(image: PngImageFile) -> object:
        decoded.append(alone.locked())
        return load(image)

    monkeypatch.setattr(PngImageFile, "load", watched)
    images.inspect_image(image_bytes(1, kind="PNG"), "PNG", images.PixelBudget(Limits()))
    assert decoded
    assert all(decoded)


def test_a_caption_that_is_slow_to_search(tmp_path: Path) -> None:
    files = {"a.jpg": image_bytes(1), "a.txt": b"-" * 10_000_000}
    path = make_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    began = time.process_time()
    report = check_archive(path, trigger_word="-" * 127 + "x")
    assert time.process_time() - began < 1
    assert {"caption_long", "caption_without_trigger"} <= {each.code for each in report.findings}


HOSTILE = {
    "zeros": lambda: _zip(bomb(40_000_000)),
    "list": lambda: list_of_files(1_000_000),
    "pixels": lambda: _zip(
        {
            "a.png": png_of_zeros(60_000, 60_000),
            "b.webp": webp_that_claims(16_383, 16_383),
            "c.png": png_of_zeros(9_000, 9_000),
        }
    ),
    "exif": lambda: _zip({"a.png": png_with_exif(500, 2_000_000), "b.jpg": b"no picture"}, zipfile.ZIP_STORED),
    "pieces": lambda: _zip({"a.jpg": jpeg_of_pieces(4_000_000)}, zipfile.ZIP_STORED),
    "noise": lambda: b"PK\x03\x04" + bytes(range(256)) * 100_000,
}


def _zip(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


_MEASURE = """
import sys
from pathlib import Path
import PIL.Image, PIL.PngImagePlugin, PIL.WebPImagePlugin
from finetune_queue.datasets.check import check_archive
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
before = peak()
report = check_archive(Path(sys.argv[1]))
print(int(report.ok), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_cost_little_memory_and_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(HOSTILE[name]())
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], check=True, capture_output=True, text=True, timeout=20
    )
    ok, grown = done.stdout.split()
    assert ok == "0"
    assert int(grown) < MEMORY_MB, f"{grown} MB for a file of {path.stat().st_size} bytes"


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A little of everything, to be mutated."""
    files = {
        "a.jpg": image_bytes(1, (24, 24)),
        "a.txt": b"1MAN",
        "b.png": image_bytes(2, (24, 24), "PNG"),
        "sub/c.webp": image_bytes(3, (24, 24), "WEBP"),
        "d.gif": image_bytes(4, (24, 24), "GIF"),
        "e.bmp": image_bytes(5, (8, 8), "BMP"),
        "p.jpg": image_bytes(6, (24, 24), progressive=True, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00"),
        ".DS_Store": b"junk",
    }
    path = make_zip(tmp_path_factory.mktemp("valid") / "a.zip", files)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        for name in ("s.jpg", "s.png", "s.webp", "s.gif"):
            kind = {"jpg": "JPEG"}.get(name[2:], name[2:].upper())
            archive.writestr(name, image_bytes(7, (24, 24), kind))
    return path.read_bytes()


Mutation = tuple[str, int, int, bytes]
mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "cut", "insert", "repeat", "drop"]),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 10),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, changes: list[Mutation]) -> bytes:
    out = bytearray(data)
    for kind, place, length, patch in changes:
        at = place % (len(out) + 1)
        if kind == "set":
            out[at : at + len(patch)] = patch
        elif kind == "flip" and at < len(out):
            out[at] ^= patch[0]
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = patch
        elif kind == "repeat":
            out[at:at] = out[at : at + length]
        elif kind == "drop":
            del out[at : at + length]
    return bytes(out)


def assert_is_a_report(path: Path) -> DatasetReport:
    started = time.process_time()
    report = check_archive(path, trigger_word="1MAN", instance_prompt="1MAN", limits=SMALL)
    assert time.process_time() - started < 6
    assert report.ok == all(each.severity != "error" for each in report.findings)
    assert {each.code for each in report.findings} <= set(RULES)
    assert len(report.findings) <= SMALL.max_findings
    assert DatasetReport.model_validate_json(report.model_dump_json()) == report
    return report


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations)
def test_any_mutation_gives_a_report(tmp_path: Path, valid: bytes, changes: list[Mutation]) -> None:
    path = tmp_path / "mutated.zip"
    path.write_bytes(mutated(valid, changes))
    assert_is_a_report(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 1 << 16), patch=st.binary(min_size=1, max_size=4), from_end=st.booleans())
def test_a_mutated_list_of_files_gives_a_report(
    tmp_path: Path, valid: bytes, offset: int, patch: bytes, *, from_end: bool
) -> None:
    start = valid.rindex(b"PK\x05\x06") if from_end else valid.index(b"PK\x01\x02")
    at = start + offset % (len(valid) - start)
    path = tmp_path / "mutated.zip"
    path.write_bytes(valid[:at] + patch + valid[at + len(patch) :])
    assert_is_a_report(path)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]), changes=mutations)
def test_a_mutated_picture_gives_a_report(tmp_path: Path, kind: str, changes: list[Mutation]) -> None:
    data = mutated(image_bytes(1, (24, 24), kind), changes)
    report = assert_is_a_report(make_zip(tmp_path / "a.zip", {"a.jpg": data}))
    assert report.images + len([code for code in codes(report) if code != "no_images"]) >= 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=600))
def test_any_bytes_give_a_report(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bytes.zip"
    path.write_bytes(data)
    assert_is_a_report(path)


def test_the_unchanged_archive_is_good(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(valid)
    assert assert_is_a_report(path).ok
    assert check_archive(make_dataset_zip(tmp_path / "b.zip")).ok
