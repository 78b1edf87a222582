"""Is this ZIP worth paying for a training? One pass, with bounded memory and time, and nothing written to disk."""

import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

from finetune_queue.datasets.archive import (
    ArchiveRefusedError,
    Entry,
    EntryRefusedError,
    Meter,
    inflate,
    other_kind,
    read_entries,
)
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.images import (
    HEAD_BYTES,
    READABLE_FORMATS,
    SUFFIXES,
    TRAINABLE_FORMATS,
    ImageFacts,
    ImageRefusedError,
    PixelBudget,
    alike,
    inspect_image,
    sniff,
)
from finetune_queue.datasets.limits import DEFAULT_LIMITS, Limits
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
from finetune_queue.datasets.report import Collector, DatasetReport, Finding
from finetune_queue.datasets.trigger import Trigger
from finetune_queue.plain_words import byte_size
from finetune_queue.progress import OnProgress

FEW_IMAGES = 5
MANY_IMAGES = 50
SMALL_SIDE = 512
FULL_SIDE = 1024
ODD_RATIO = 3.0
LONG_CAPTION = 3_000
_COMPARED = 200
"""How many images are compared with each other: the comparisons grow with the square of it."""
_PLACEHOLDER = "[trigger]"
NO_IMAGES = "It has no usable image."


def check_archive(
    path: Path,
    *,
    trigger_word: str | None = None,
    instance_prompt: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_progress: OnProgress | None = None,
) -> DatasetReport:
    """Judge a ZIP against the Fast Flux API (section 1, "Dataset") and against what is known to train badly.

    Whatever the file holds, the answer is a report; `trigger_word` and `instance_prompt` are those of the request.

    Raises:
        DatasetError: the file is not there or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _Check(file, limits, trigger_word, instance_prompt, on_progress).run()
    except FileNotFoundError as error:
        raise DatasetError(
            "dataset_not_found", f"There is no file {display_name(str(path))}.", "Check the path."
        ) from error
    except OSError as error:
        raise DatasetError(
            "dataset_unreadable",
            f"{display_name(str(path))} cannot be read: {error.strerror or error}.",
            "Check that it is a file and that this user may read it.",
            retryable=True,
        ) from error


def glance(path: Path) -> tuple[Finding, ...]:
    """Return why a ZIP cannot be trained on, as far as its list of files and the first bytes of its files show: it is
    no ZIP, is damaged, or has no image. This is quick; the whole check is :func:`check_archive`.

    Raises:
        OSError: the file cannot be read.
    """
    collector = Collector(DEFAULT_LIMITS)
    with path.open("rb") as file:
        try:
            entries = read_entries(file, os.fstat(file.fileno()).st_size, DEFAULT_LIMITS, collector)
            meter = Meter(DEFAULT_LIMITS)
            if not any(_begins_as_image(file, entry, meter) for entry in entries if not is_junk(entry.name)):
                collector.add("no_images", NO_IMAGES)
        except ArchiveRefusedError as refused:
            collector.add(refused.code, refused.message, refused.file)
    return tuple(each for each in collector.findings() if each.severity == "error")


def _begins_as_image(file: io.BufferedReader, entry: Entry, meter: Meter) -> bool:
    try:
        return sniff(next(inflate(file, entry, meter), b"")[:HEAD_BYTES]) in READABLE_FORMATS
    except EntryRefusedError:
        return False


@dataclass
class _Seen:
    """What was noted of the single entries, to judge the dataset as a whole."""

    images: dict[str, str] = field(default_factory=dict)
    """Stem -> the first image with it."""
    captions: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Stems of unusable images and captions: a caption or image without such a partner is not reported."""
    hashes: dict[bytes, str] = field(default_factory=dict)
    looks: list[tuple[bytes, str]] = field(default_factory=list)
    junk: list[str] = field(default_factory=list)
    short_sides: list[int] = field(default_factory=list)
    nested: str | None = None


class _Check:
    """One check of one open file."""

    def __init__(
        self,
        file: io.BufferedReader,
        limits: Limits,
        trigger_word: str | None,
        instance_prompt: str | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._file = file
        self._limits = limits
        self._prompt = instance_prompt
        self._trigger = Trigger(trigger_word) if trigger_word and trigger_word.strip() else None
        self._collector = Collector(limits)
        self._meter = Meter(limits, on_progress)
        self._pixels = PixelBudget(limits)
        self._seen = _Seen()

    def run(self) -> DatasetReport:
        """Read the file once and return what was found."""
        size = os.fstat(self._file.fileno()).st_size
        digest: str | None = None
        if size >= self._limits.max_bytes:
            self._collector.add(
                "archive_too_large",
                f"The ZIP is {byte_size(size)}; the API takes less than {byte_size(self._limits.max_bytes)}.",
            )
        else:
            digest = hashlib.file_digest(self._file, "sha256").hexdigest()
            self._read(size)
        seen = self._seen
        return DatasetReport(
            ok=self._collector.ok,
            images=len(seen.short_sides),
            captions=len(seen.captions),
            bytes=size,
            sha256=digest,
            short_sides=(min(seen.short_sides), max(seen.short_sides)) if seen.short_sides else None,
            findings=self._collector.findings(),
            omitted=self._collector.omitted(),
        )

    def _read(self, size: int) -> None:
        try:
            for entry in read_entries(self._file, size, self._limits, self._collector):
                self._entry(entry)
        except ArchiveRefusedError as refused:
            self._collector.add(refused.code, refused.message, refused.file)
            return
        self._judge_images()
        self._judge_captions()
        if self._seen.junk:
            self._collector.add("junk", f"{some_of(self._seen.junk)}: skipped.")
        if self._trigger and (why := self._trigger.why_common()):
            self._collector.add("trigger_common", f"The trigger word {self._trigger.shown} {why}.")
        if self._prompt and self._trigger and not self._trigger.within(self._prompt):
            self._collector.add(
                "prompt_without_trigger", f"The instance prompt does not have the trigger word {self._trigger.shown}."
            )

    def _entry(self, entry: Entry) -> None:
        self._meter.tick()
        name = entry.name
        try:
            if is_junk(name):
                # Inflated all the same: whoever unpacks the ZIP will do so too.
                for _ in inflate(self._file, entry, self._meter):
                    pass
                self._seen.junk.append(name)
                return
            data = b"".join(inflate(self._file, entry, self._meter))
            if suffix_of(name) == CAPTION_SUFFIX:
                self._caption(name, data)
            else:
                self._image(name, data)
        except (EntryRefusedError, ImageRefusedError) as refused:
            self._refuse(refused.code, refused.message, name)

    def _refuse(self, code: str, message: str, name: str) -> None:
        self._collector.add(code, message, name)
        self._seen.refused.add(stem_of(name))

    def _image(self, name: str, data: bytes) -> None:
        kind = sniff(data[:HEAD_BYTES])
        suffix = suffix_of(name)
        if kind is None:
            if archive := other_kind(data[:512]):
                self._collector.add("archive_nested", f"It is {archive} inside the ZIP.", name)
            elif suffix in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES:
                what = "It is empty" if not data else "It is named like an image, but cannot be read as one"
                self._refuse("image_unreadable" if suffix in IMAGE_SUFFIXES else "image_unsupported", f"{what}.", name)
            else:
                self._collector.add("file_ignored", "It is neither an image nor a .txt caption.", name)
            return
        if kind not in READABLE_FORMATS:
            self._refuse("image_unsupported", f"It is a picture in {kind}, which the training may not read.", name)
            return
        facts = inspect_image(data, kind, self._pixels)
        self._seen.short_sides.append(facts.short_side)
        self._seen.images.setdefault(stem_of(name), name)
        if "/" in name and self._seen.nested is None:
            self._seen.nested = name
        self._judge_image(name, facts)
        first = self._seen.hashes.setdefault(hashlib.sha256(data).digest(), name)
        if first != name:
            self._collector.add("image_duplicate", f"It is the same picture as {display_name(first)}.", name)
        elif facts.look is not None:
            self._compare(name, facts.look)

    def _compare(self, name: str, look: bytes) -> None:
        looks = self._seen.looks
        near = next((other for seen, other in looks if alike(look, seen)), None)
        if near is not None:
            self._collector.add("image_near_duplicate", f"It is nearly the same picture as {display_name(near)}.", name)
        elif len(looks) < _COMPARED:
            looks.append((look, name))

    def _judge_image(self, name: str, facts: ImageFacts) -> None:
        add = self._collector.add
        size = f"{facts.width} x {facts.height} pixels"
        suffix = suffix_of(name)
        if facts.kind not in TRAINABLE_FORMATS:
            add("image_format", f"It is a picture in {facts.kind}, which trainers often skip.", name)
        elif suffix not in IMAGE_SUFFIXES:
            add("image_suffix", f"It is a {facts.kind} picture with another suffix.", name)
        elif suffix not in SUFFIXES[facts.kind]:
            add("image_suffix", f"Its suffix is {suffix}, but it is a {facts.kind} picture.", name)
        if facts.short_side < SMALL_SIDE:
            add("image_small", f"{size}: the short side is under {SMALL_SIDE}.", name)
        elif facts.short_side < FULL_SIDE:
            add("image_below_1024", f"{size}: the short side is under {FULL_SIDE}.", name)
        if max(facts.width, facts.height) > ODD_RATIO * facts.short_side:
            add("image_odd_shape", f"{size}: one side is more than {ODD_RATIO:g} times the other.", name)
        if facts.cmyk:
            add("image_cmyk", "It is in CMYK, the colours of print.", name)
        if facts.rotated:
            add("image_rotated", "It is stored rotated, with an EXIF tag that turns it back.", name)
        if facts.animated:
            add("image_animated", "It is an animation; at most its first frame is used.", name)
        if facts.transparent:
            add("image_transparent", "Parts of it are transparent.", name)

    def _caption(self, name: str, data: bytes) -> None:
        add = self._collector.add
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            kind = sniff(data[:HEAD_BYTES])
            what = f"a picture in {kind}" if kind else "not UTF-8 text"
            self._refuse("caption_not_text", f"It is {what}.", name)
            return
        if "\0" in text:
            self._refuse("caption_not_text", "It contains NUL bytes, so it is not plain text.", name)
            return
        self._seen.captions[stem_of(name)] = name
        if not text.strip():
            add("caption_empty", "The caption is empty.", name)
        elif len(text) > LONG_CAPTION:
            add("caption_long", f"The caption has {len(text)} characters.", name)
        if self._trigger and text.strip() and not self._trigger.within(text):
            if _PLACEHOLDER in text.lower():
                add("caption_placeholder", f"It says {_PLACEHOLDER} in place of the trigger word.", name)
            else:
                add("caption_without_trigger", f"The trigger word {self._trigger.shown} is not in it.", name)

    def _judge_images(self) -> None:
        count = len(self._seen.short_sides)
        if count == 0:
            self._collector.add("no_images", NO_IMAGES)
        elif count < FEW_IMAGES:
            self._collector.add("few_images", f"There {'is 1 image' if count == 1 else f'are {count} images'}.")
        elif count > MANY_IMAGES:
            self._collector.add("many_images", f"There are {count} images.")
        if self._seen.nested is not None:
            self._collector.add(
                "folders_inside", "Images are in folders, which the API's own examples do not have.", self._seen.nested
            )

    def _judge_captions(self) -> None:
        images, captions, refused = self._seen.images, self._seen.captions, self._seen.refused
        for stem, name in captions.items():
            if stem not in images and stem not in refused:
                self._collector.add("caption_orphan", "There is no image of the same name.", name)
        without = [name for stem, name in images.items() if stem not in captions and stem not in refused]
        if images and len(without) == len(images):
            self._collector.add("no_captions", "No image has a caption: the instance prompt is used for all of them.")
        else:
            for name in without:
                self._collector.add("caption_missing", "Other images have captions; this one has none.", name)
