"""Small deterministic pictures, folders and ZIP files of them, for every test that needs a dataset."""

import io
import random
import zipfile
from pathlib import Path

from PIL import Image


def image_bytes(
    seed: int = 0,
    size: tuple[int, int] = (64, 64),
    kind: str = "JPEG",
    mode: str = "RGB",
    **options: object,
) -> bytes:
    """A picture that looks different for each seed, and has the same bytes for the same arguments."""
    shuffle = random.Random(seed)
    image = Image.frombytes("RGB", (8, 8), shuffle.randbytes(8 * 8 * 3)).resize(size).convert(mode)
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def _photos(count: int, size: tuple[int, int]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number in range(1, count + 1):
        files[f"photo{number:03}.jpg"] = image_bytes(number, size)
        files[f"photo{number:03}.txt"] = f"a photo of 1MAN, number {number}\n".encode()
    return files


def make_dataset_folder(path: Path, count: int = 6, size: tuple[int, int] = (64, 64)) -> Path:
    """A folder of `count` JPEG pictures, each with a caption that has the trigger word 1MAN."""
    path.mkdir(parents=True, exist_ok=True)
    for name, data in _photos(count, size).items():
        (path / name).write_bytes(data)
    return path


def make_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A ZIP with these files, in this order."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_dataset_zip(path: Path, count: int = 6, size: tuple[int, int] = (64, 64)) -> Path:
    """A ZIP of what `make_dataset_folder` makes, without the folder."""
    return make_zip(path, _photos(count, size))
