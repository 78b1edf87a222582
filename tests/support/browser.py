"""What tests in a browser share: what it complained about, and time that passes at once."""

from playwright.sync_api import Page

SOON = 8000
"""Milliseconds that a page may take to show what is new."""


class Seen:
    """What the browser complained about, and where it went."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.hosts: set[str] = set()


def let_pass(page: Page, seconds: int) -> None:
    """Let time go by for the page, at once. It looks again every 5 s, at a job every 2 s, whether or not it is told."""
    page.clock.run_for(seconds * 1000)
