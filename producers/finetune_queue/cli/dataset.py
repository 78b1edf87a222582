"""``finetune dataset check``: what a job would find wrong with a dataset, before anything is submitted."""

from finetune_queue.cli import output
from finetune_queue.cli.output import ExitCode
from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.names import display_name
from finetune_queue.datasets.pack import packed


def check(source: str, *, trigger_word: str | None, prompt: str | None, as_json: bool) -> ExitCode:
    """Check a folder, as it would be packed, or a ZIP; 1 if a job with it would fail.

    Raises:
        DatasetError: there is nothing to check.
    """
    with packed(source) as found:
        report = check_archive(found.path, trigger_word=trigger_word, instance_prompt=prompt)
    report = report.with_findings(found.notes)
    if as_json:
        output.emit(report.model_dump(mode="json"))
    else:
        from finetune_queue.datasets.render import render_report

        console, said = output.out(), render_report(report, title=display_name(source))
        if console.is_terminal:
            console.print(said)
        else:  # columns are filled up with spaces, which nobody wants in a log
            with console.capture() as text:
                console.print(said)
            output.say("\n".join(line.rstrip() for line in text.get().splitlines()))
    return ExitCode.OK if report.ok else ExitCode.FAILED
