"""The report of a check: findings by a stable code, each with the file it is about and what to do.

`RULES` is the whole catalogue: how serious each code is and its usual fix. Errors stop a job before it costs anything,
warnings say what trains badly, notes only inform.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from finetune_queue.datasets.limits import Limits
from finetune_queue.datasets.names import display_name

Severity = Literal["error", "warning", "note"]

_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


class Rule(NamedTuple):
    """How serious a finding is, and the usual fix."""

    severity: Severity
    fix: str


_REPACK = "Recreate the ZIP from the original files, or give the folder: `finetune submit --dataset FOLDER` packs it."
_SMALLER = "Scale the images down to at most 2048 pixels on the long side: the training uses no more."
_CONVERT = "Save it as JPEG or PNG, or leave it out."

RULES: dict[str, Rule] = {
    # the archive as a whole
    "archive_empty": Rule("error", "Add images to it; the file may also have been cut off while it was copied."),
    "archive_not_zip": Rule("error", "Give a ZIP file, or the folder of images itself."),
    "archive_too_large": Rule("error", f"{_SMALLER} Fewer images help too: 10 to 30 are plenty."),
    "archive_damaged": Rule("error", f"Copy or download it again. {_REPACK}"),
    "archive_bomb": Rule("error", f"{_REPACK} Save flat, uncompressed pictures as PNG or JPEG first."),
    "archive_overlap": Rule("error", _REPACK),
    "archive_too_many_entries": Rule("error", "Keep only the training images and their captions: 10 to 30 are plenty."),
    "archive_nested": Rule("error", "Unpack the inner archive and pack its images directly."),
    "check_too_slow": Rule("error", _SMALLER),
    # one entry
    "entry_encrypted": Rule("error", "Pack again without a password: the training could not open it."),
    "entry_unsafe_path": Rule("error", "Give the file a plain name, which means recreating the ZIP."),
    "entry_link": Rule("error", "Put the file itself in the ZIP in place of the link."),
    "entry_repeated": Rule("error", "Keep one of the two: tools differ in which one they use."),
    "entry_damaged": Rule("error", _REPACK),
    "entry_method": Rule("error", "Pack again with the ordinary 'deflate' or 'store' method."),
    "entry_too_large": Rule("error", _SMALLER),
    # images
    "no_images": Rule("error", "Add at least one image; 10 to 30 varied ones train best."),
    "image_unreadable": Rule("error", "Replace it with a good copy, or leave it out."),
    "image_unsupported": Rule("error", _CONVERT),
    "image_too_large": Rule("error", _SMALLER),
    "images_too_large": Rule("error", _SMALLER),
    "few_images": Rule("warning", "Use 10 to 30 images with different backgrounds, poses and light."),
    "many_images": Rule("warning", "Choose the 10 to 30 best: more images need more steps to learn from."),
    "image_small": Rule("warning", "Use a larger original: scaling a small picture up adds no detail."),
    "image_below_1024": Rule("note", "1024 pixels or more on the short side give the sharpest results."),
    "image_odd_shape": Rule("warning", "Crop it to the subject: a long strip is cut or squeezed in training."),
    "image_duplicate": Rule("warning", "Leave one out: the model memorises repeated pictures."),
    "image_near_duplicate": Rule("warning", "Leave one out, unless the small difference matters."),
    "image_format": Rule("warning", _CONVERT),
    "image_suffix": Rule("warning", "Rename it to .jpg, .png or .webp: trainers find images by their suffix."),
    "image_cmyk": Rule("warning", "Convert it to RGB: print colours come out wrong."),
    "image_rotated": Rule("warning", "Save it upright: a trainer that ignores the EXIF rotation sees it turned."),
    "image_animated": Rule("warning", "Save the frame that you want as JPEG or PNG."),
    "image_transparent": Rule("note", "Put it on a plain background: the transparent parts turn black or white."),
    # captions
    "caption_not_text": Rule("error", "Save the caption as plain UTF-8 text."),
    "caption_empty": Rule("warning", "Write a sentence about the image, or delete the file."),
    "caption_long": Rule("warning", "Shorten it to a sentence or two: the model reads about 500 words at most."),
    "caption_orphan": Rule("warning", "Give it the name of its image (photo1.jpg and photo1.txt), or delete it."),
    "caption_missing": Rule("warning", "Write a caption for each image, or for none."),
    "caption_without_trigger": Rule("warning", "Put the trigger word into the caption."),
    "caption_placeholder": Rule("warning", "Write the trigger word itself: the API does not promise to replace it."),
    "no_captions": Rule("note", "That is fine; captions (photo1.txt beside photo1.jpg) give you more control."),
    "prompt_without_trigger": Rule("warning", "Put the trigger word into the instance prompt."),
    "trigger_common": Rule(
        "warning",
        "Use one made-up word, such as 1MAN: a word that the model already knows brings its own meaning into every "
        "prompt.",
    ),
    # the rest
    "file_ignored": Rule("warning", "Leave it out: only images and .txt captions are used."),
    "folders_inside": Rule(
        "warning", "Put the files at the top of the ZIP, as `finetune submit --dataset FOLDER` does."
    ),
    "junk": Rule("note", "Nothing to do: the operating system left them, and they are skipped."),
    "left_out": Rule("note", "Nothing to do, unless it was meant to be trained on."),
    "renamed": Rule("note", "Nothing to do: files of the same name in different folders got different names."),
}


class Finding(BaseModel):
    """One thing to know about a dataset. `file` is the name inside the ZIP, made fit for showing."""

    model_config = ConfigDict(frozen=True)

    code: str
    severity: Severity
    file: str | None = None
    message: str
    fix: str


def finding(code: str, message: str, file: str | None = None) -> Finding:
    """Make a finding with the severity and the fix that the catalogue has for `code`.

    Raises:
        KeyError: `code` is not in `RULES`.
    """
    rule = RULES[code]
    shown = None if file is None else display_name(file)
    return Finding(code=code, severity=rule.severity, file=shown, message=message, fix=rule.fix)


class DatasetReport(BaseModel):
    """What a check found. `ok` means that no finding is an error; `bytes` is the size of the ZIP."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    images: int = 0
    captions: int = 0
    bytes: int = 0
    sha256: str | None = None
    """Of the ZIP; None when it was too large to be read."""
    short_sides: tuple[int, int] | None = None
    """Shortest and longest short side of the images, in pixels."""
    findings: tuple[Finding, ...] = ()
    omitted: dict[str, int] = {}
    """How many more findings of a code there are than are listed."""

    def count(self, severity: Severity) -> int:
        """Return how many findings of that severity there are, with those that are not listed."""
        listed = sum(1 for each in self.findings if each.severity == severity)
        codes = {code for code, rule in RULES.items() if rule.severity == severity}
        return listed + sum(more for code, more in self.omitted.items() if code in codes)

    def with_findings(self, more: Iterable[Finding]) -> "DatasetReport":
        """Return this report with findings from elsewhere, such as from packing, sorted in by severity."""
        added = tuple(more)
        findings = sorted((*self.findings, *added), key=lambda each: _ORDER[each.severity])
        ok = self.ok and all(each.severity != "error" for each in added)
        return self.model_copy(update={"findings": tuple(findings), "ok": ok})


class Collector:
    """Collects findings up to a limit and counts the rest, so that no dataset makes a huge report."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: dict[str, list[Finding]] = {}
        self._seen: Counter[str] = Counter()

    def add(self, code: str, message: str, file: str | None = None) -> None:
        """Note a finding; beyond the limit for its code it is only counted."""
        self._seen[code] += 1
        kept = self._kept.setdefault(code, [])
        if len(kept) < self._limits.max_findings_per_code:
            kept.append(finding(code, message, file))

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return all(RULES[code].severity != "error" for code in self._seen)

    def findings(self) -> tuple[Finding, ...]:
        """Return the kept ones: errors first, within a severity by code, in the order in which the codes came up."""
        everything = [each for kept in self._kept.values() for each in kept]
        everything.sort(key=lambda each: _ORDER[each.severity])
        return tuple(everything[: self._limits.max_findings])

    def omitted(self) -> dict[str, int]:
        """Return for each code how many more findings there were than are kept."""
        listed = Counter(each.code for each in self.findings())
        return {code: seen - listed[code] for code, seen in self._seen.items() if seen > listed[code]}
