"""How much of a dataset is read, inflated and decoded before the check says no."""

from dataclasses import dataclass

MAX_ARCHIVE_BYTES = 100_000_000
"""A ZIP must be smaller than this many bytes (Fast Flux API, section 1: "under 100 MB", read the strict way)."""

TAKE_LESS = "Scale the images down to at most 2048 pixels on the long side, or use fewer: 10 to 30 are plenty."
"""What to do about a dataset that is too large."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one check. Sizes are in bytes; with the defaults a check stays below about 600 MB and one minute."""

    max_bytes: int = MAX_ARCHIVE_BYTES
    max_directory_bytes: int = 1 << 20
    max_entries: int = 2_000
    max_entry_bytes: int = 50_000_000
    max_inflated_bytes: int = 300_000_000
    max_ratio: int = 200
    """Inflated by compressed size of one entry, for entries that inflate to more than a megabyte."""
    max_pixels: int = 50_000_000
    max_total_pixels: int = 2_000_000_000
    max_jpeg_scans: int = 100
    """A progressive JPEG has about ten scans; each costs a pass over the whole picture."""
    max_reads: int = 1_000_000
    """How many times Pillow may read from one picture's file: each piece of a file costs it memory and time."""
    max_seconds: float = 60.0
    max_findings: int = 60
    max_findings_per_code: int = 10


DEFAULT_LIMITS = Limits()
