"""``finetune dataset check``."""

import tempfile
from pathlib import Path

import pytest

from finetune_queue.cli.output import ExitCode
from support.cli import Run
from support.images import make_dataset_folder, make_dataset_zip, make_zip


def test_a_good_folder(run: Run, tmp_path: Path) -> None:
    folder = make_dataset_folder(tmp_path / "images")
    result = run("dataset", "check", folder, "--trigger-word", "1MAN")
    assert result.code == ExitCode.OK
    assert result.out.startswith("PASS")
    assert all(line == line.rstrip() for line in result.out.splitlines())
    report = run("dataset", "check", folder, "--json").json
    assert (report["ok"], report["images"], report["captions"]) == (True, 6, 6)


def test_what_packing_leaves_out_is_in_the_report(run: Run, tmp_path: Path) -> None:
    folder = make_dataset_folder(tmp_path / "images")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    codes = {finding["code"] for finding in run("dataset", "check", folder, "--json").json["findings"]}
    assert "left_out" in codes


def test_a_trigger_word_that_no_caption_has(run: Run, tmp_path: Path) -> None:
    path = make_dataset_zip(tmp_path / "set.zip")
    findings = run("dataset", "check", path, "-t", "T0KEN", "-p", "a photo", "--json").json["findings"]
    assert {"caption_without_trigger", "prompt_without_trigger"} <= {finding["code"] for finding in findings}


def test_a_zip_that_a_job_would_fail_with(run: Run, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "empty.zip", {"readme.txt": b"no pictures"})
    result = run("dataset", "check", path)
    assert result.code == ExitCode.FAILED
    assert "no_images" in result.out
    assert run("dataset", "check", path, "--json").json["ok"] is False


def test_nothing_to_check(run: Run, tmp_path: Path) -> None:
    result = run("dataset", "check", tmp_path / "missing", "--json")
    assert result.code == ExitCode.USAGE
    assert result.error["code"] == "dataset_not_found"


def test_an_empty_path_is_not_the_current_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_dataset_folder(tmp_path / "images"))
    result = run("dataset", "check", "", "--json")
    assert (result.code, result.error["code"]) == (ExitCode.USAGE, "dataset_bad_address")
    assert run("dataset", "check", ".").code == ExitCode.OK


def test_a_folder_with_an_odd_file_name_is_not_told_to_give_a_folder(run: Run, tmp_path: Path) -> None:
    make_dataset_folder(tmp_path / "odd", count=6)
    next((tmp_path / "odd").glob("*.jpg")).rename(tmp_path / "odd" / "back\\slash.jpg")
    findings = run("dataset", "check", tmp_path / "odd", "--json").json["findings"]
    [found] = [each for each in findings if each["code"] == "entry_unsafe_path"]
    assert "older" not in found["fix"]


@pytest.mark.usefixtures("queue_url")
@pytest.mark.parametrize("command", ["dataset check", "submit --name n --trigger-word t --prompt p --dataset"])
def test_a_machine_without_a_temporary_folder_is_no_defect(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder = make_dataset_folder(tmp_path / "photos", count=6)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    result = run(*command.split(), folder)
    assert result.code == ExitCode.USAGE
    assert "There is no temporary folder to pack it in: No such file or directory." in result.err
    assert "TMPDIR" in result.err
