"""The commands that pages show are there in the program."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from finetune_queue.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def shown(page: Path) -> Iterator[list[str]]:
    """The words after ``finetune`` wherever a page shows it as a command, with all options up to the next command."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [line for block in blocks for line in block.splitlines()]
    spans += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    for span in spans:
        # Not kubectl's namespace, and not the user of a Redis.
        for command in re.findall(r"(?:^|(?<!-n)[ /(])finetune ((?:-?-?[a-z])[^|;&#]*)", span):
            if not re.search(r"(setuser|secret generic) finetune ", span):
                yield command.split()


def found(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, None if there is none, and the words that follow."""
    command: Any = typer.main.get_command(app)
    while words and command is not None and hasattr(command, "commands"):
        inner = command.commands.get(words[0])
        if inner is None:
            # A group's own options, or one that also is a command.
            return (command if words[0].startswith("-") or command.invoke_without_command else None), words
        command, words = inner, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_and_option_that_a_page_shows_is_there(page: Path) -> None:
    for words in shown(page):
        command, rest = found(words)
        assert command is not None, " ".join(words)
        if command.name == "sandbox":  # another parser's
            continue
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        given = {word for word in rest if re.fullmatch(r"--?[a-z][a-z-]*", word)} - {"--help", "-h"}
        assert given <= known, " ".join(words)
