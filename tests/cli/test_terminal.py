"""What others wrote cannot steer the terminal of whoever reads it."""

import httpx
import pytest

from finetune_queue.cli import output, words
from finetune_queue.cli.batch import Tally
from finetune_queue.cli.output import ExitCode, usage_error
from segmind_sandbox.testing import LiveSandbox
from support.cli import Run

CLEARS = "\x1b[2J\x9b31m\x07"
"""Clears the screen, turns what follows red, and rings."""


def test_texts_for_people_are_printed_without_what_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"two\nlines {CLEARS}")
    output.note(CLEARS)
    output.report(usage_error(CLEARS), as_json=False)
    Tally(as_json=False).refuse(1, usage_error(CLEARS))
    out, err = capsys.readouterr()
    assert out == "two\nlines \\x1b[2J\\x9b31m\\x07\n"
    assert err.count("\\x1b[2J\\x9b31m\\x07") == 3
    assert not any(character in err for character in "\x1b\x9b\x07")
    assert words.still_trying(CLEARS).isprintable()  # also drawn in the table of `watch`


def test_a_webhook_whose_address_another_program_chose(run: Run, sandbox: LiveSandbox) -> None:
    body = {"webhook_url": f"https://example.com/{CLEARS}", "event": {"types": ["FINETUNE", CLEARS]}}
    headers = {"x-api-key": sandbox.api_key}
    httpx.post(f"{sandbox.base_url}/webhook/add", json=body, headers=headers, trust_env=False).raise_for_status()
    shown = run("webhooks", "list")
    assert shown.code == ExitCode.OK
    assert "\\x1b[2J" in shown.out
    assert not any(character in shown.out for character in "\x1b\x9b\x07")
