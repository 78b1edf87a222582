"""Is it a picture, and one that trains well? Judged by its bytes, never by its name.

Pillow opens only formats that a training is likely to read, and decodes pixels only after the header has shown that
they are not too many. Its readers for other formats are not used: some of them start other programs.
"""

import io
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import sub

from PIL import Image, UnidentifiedImageError

from finetune_queue.datasets.limits import Limits

TRAINABLE_FORMATS = frozenset({"JPEG", "PNG", "WEBP"})
READABLE_FORMATS = TRAINABLE_FORMATS | {"BMP", "GIF"}
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
}
COMPRESSED_FORMATS = TRAINABLE_FORMATS | {"GIF", "HEIC", "AVIF"}
"""Formats that deflate cannot make smaller."""

HEAD_BYTES = 32
_LARGE_PIXELS = 12_000_000
_PIXEL_COST = {"WEBP": 2}
"""Decoding WebP holds its canvas several times over, so its pixels count double against the limits."""
_SAMPLES = (128, 128)
_LOOK = (8, 8)
_ALIKE = 3.0
"""The mean difference of two looks, in levels of 255, up to which they are alike. Measured: 1.2 to 2.3 between copies
of a noisy picture in other sizes, formats and qualities; 10 and more for a crop by a twentieth or a little more
light."""
_LOOKED_AT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_EXIF_ORIENTATION = 0x0112
_ROTATED = range(2, 9)
_ONE_LARGE_IMAGE_AT_A_TIME = threading.Lock()
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
)
_FTYP_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"heim": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"avif": "AVIF",
    b"avis": "AVIF",
}

# What Pillow warns of (odd metadata, many pixels) is judged here; on a user's terminal it would be noise.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageRefusedError(Exception):
    """This picture cannot be used; `code` is one of the catalogue's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is worth knowing about one picture. Sides are in pixels."""

    kind: str
    width: int
    height: int
    cmyk: bool
    rotated: bool
    animated: bool
    transparent: bool
    look: bytes | None
    """The picture at 8 x 8 pixels, for `alike`; None for rare kinds of pixels."""

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)


def sniff(head: bytes) -> str | None:
    """Return the picture format that these first `HEAD_BYTES` bytes belong to, or None for no picture."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _FTYP_BRANDS.get(head[8:12])
    # Two letters alone are a weak sign: the reserved fields of a BMP header are zero.
    if head[:2] == b"BM" and head[6:10] == b"\x00\x00\x00\x00":
        return "BMP"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


class _Reads(io.BytesIO):
    """A picture's bytes that may be read ``most`` times. A file of millions of empty pieces would else keep Pillow busy
    for minutes and take gigabytes.
    """

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._left = most

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageRefusedError("image_unreadable", "It is made of far more pieces than a picture needs.")
        return super().read(size)


class PixelBudget:
    """How many pixels one check may still decode."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._left = limits.max_total_pixels

    def take(self, pixels: int) -> None:
        """Use up the pixels of one more picture.

        Raises:
            ImageRefusedError: this picture, or all of them together, have too many.
        """
        limit = self.limits.max_pixels
        if pixels > limit:
            raise ImageRefusedError(
                "image_too_large", f"It has more than {limit // 1_000_000} megapixels (WebP counts double)."
            )
        self._left -= pixels
        if self._left < 0:
            total = self.limits.max_total_pixels // 1_000_000
            raise ImageRefusedError("images_too_large", f"The images have more than {total} megapixels in total.")


def inspect_image(data: bytes, kind: str, budget: PixelBudget) -> ImageFacts:
    """Decode one picture and return what it is. `kind` is what `sniff` said, one of `READABLE_FORMATS`.

    Raises:
        ImageRefusedError: it does not decode, or is too large to try.
    """
    if kind == "JPEG" and data.count(b"\xff\xda") > budget.limits.max_jpeg_scans:
        raise ImageRefusedError(
            "image_too_large", "It has so many progressive scans that decoding it would take minutes."
        )
    try:
        with Image.open(_Reads(data, budget.limits.max_reads), formats=(kind,)) as image:
            return _look(image, kind, budget)
    except ImageRefusedError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefusedError("image_too_large", "It has far more pixels than a picture needs.") from error
    except UnidentifiedImageError as error:
        raise ImageRefusedError("image_unreadable", f"It starts as {kind}, but its header is broken.") from error
    except Exception as error:  # hostile bytes make Pillow's readers raise almost anything
        raise ImageRefusedError("image_unreadable", f"It does not decode as {kind}: {_reason(error)}.") from error


def _look(image: Image.Image, kind: str, budget: PixelBudget) -> ImageFacts:
    width, height = image.size
    pixels = width * height * _PIXEL_COST.get(kind, 1)
    budget.take(pixels)
    mode = image.mode
    # A JPEG of several pictures (MPO, as phones write) is one photo with extras, not an animation.
    animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    if kind == "JPEG":
        # An eighth of the size still reads every byte of the file, in a fraction of the time and memory.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
    guard: AbstractContextManager[object] = _ONE_LARGE_IMAGE_AT_A_TIME if pixels > _LARGE_PIXELS else nullcontext()
    with guard:
        image.load()
        rotated = image.getexif().get(_EXIF_ORIENTATION) in _ROTATED  # of a PNG, this too would decode the pixels
        transparent = _is_transparent(image)
        look = _look_of(image)
    return ImageFacts(
        kind=kind,
        width=width,
        height=height,
        cmyk=mode in ("CMYK", "YCCK"),
        rotated=rotated,
        animated=animated,
        transparent=transparent,
        look=look,
    )


def _look_of(image: Image.Image) -> bytes | None:
    if image.mode not in _LOOKED_AT:
        return None
    # Single pixels first: averaging them all would take a copy of a large picture.
    samples = image.resize(_SAMPLES, Image.Resampling.NEAREST).convert("RGBA").convert("RGB")
    return samples.resize(_LOOK, Image.Resampling.BOX).tobytes()


def alike(one: bytes, other: bytes) -> bool:
    """Tell whether two looks are those of one picture, perhaps in other sizes or formats."""
    difference: int = sum(map(abs, map(sub, one, other)))  # of each picture with each, so no loop in Python
    return difference <= _ALIKE * len(one)


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA"):
        low = image.getchannel("A").getextrema()[0]
        return isinstance(low, int | float) and low < 255
    return "transparency" in image.info


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".") or type(error).__name__
    return text if len(text) <= 100 else f"{text[:99]}…"
