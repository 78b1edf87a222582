"""``finetune submit`` and its options."""

from typing import Annotated

import typer

from finetune_queue.cli import output
from finetune_queue.cli.options import AsJson, Timeout, public_or_private
from finetune_queue.cli.output import ExitCode

_MORE = "More of the request"


def submit(
    *,
    data: Annotated[
        str | None,
        typer.Option("--dataset", "-d", metavar="PATH", help="A folder of images, a ZIP, or the URL of a ZIP."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="TEXT", help="The fine-tune's name at Segmind.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="Describes the subject; contains the trigger word."),
    ] = None,
    trigger_word: Annotated[
        str | None, typer.Option("--trigger-word", "-t", metavar="WORD", help="A rare word that calls up the subject.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Training steps. Default: 2000.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="KEY=JSON", help="Another training parameter. May be repeated."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", metavar="NAME", help="FAST_FLUX (the default) or FLUX_PRO.", rich_help_panel=_MORE
        ),
    ] = None,
    theme: Annotated[
        str | None, typer.Option("--theme", metavar="NAME", help="Default: subject.", rich_help_panel=_MORE)
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="Anybody may use the model at Segmind.", rich_help_panel=_MORE),
    ] = False,
    private: Annotated[
        bool,
        typer.Option("--private", help="Only the account may (the default).", rich_help_panel=_MORE),
    ] = False,
    fetch: Annotated[
        bool | None,
        typer.Option("--fetch-dataset", help="Download, check and upload a URL's ZIP.", rich_help_panel=_MORE),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", "-l", metavar="KEY=TEXT", help="Kept on the job. May be repeated.", rich_help_panel=_MORE
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option("--priority", metavar="N", help="0 (last) to 9 (first). Default: 5.", rich_help_panel=_MORE),
    ] = None,
    account: Annotated[
        str | None,
        typer.Option("--account", metavar="NAME", help="Which Segmind account pays.", rich_help_panel=_MORE),
    ] = None,
    reply_to: Annotated[
        list[str] | None,
        typer.Option(
            "--reply-to",
            metavar="URL",
            help="A sink that gets the job's events. May be repeated.",
            rich_help_panel=_MORE,
        ),
    ] = None,
    wait_for: Annotated[
        str | None,
        typer.Option(
            "--wait-for", metavar="WHAT", help="trained, or available (also deployed).", rich_help_panel=_MORE
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="KEY",
            help="Same key and request: same job. With many requests: names the batch.",
            rich_help_panel=_MORE,
        ),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="WHEN", help="ISO 8601 with a zone, or 90m, 2h, 1d.", rich_help_panel=_MORE),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="A request as JSON, or one per line in a .jsonl file; - for stdin. Options replace fields.",
        ),
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="The file has one request per line, whatever its name.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Stay until the job has ended and show it.")] = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> ExitCode:
    """Put a fine-tune on the queue.

    Local images are packed, checked and staged first. Segmind charges for each training.
    """
    from finetune_queue.cli.lines import SUFFIX
    from finetune_queue.cli.requests import Options, build_request

    if timeout is not None and not wait:
        raise output.usage_error("--timeout needs --wait.")
    fields = {
        "dataset": data,
        "name": name,
        "instance_prompt": prompt,
        "trigger_word": trigger_word,
        "base_model": base_model,
        "theme": theme,
        "segmind_public": public_or_private(public=public, private=private),
        "fetch_dataset": fetch,
        "priority": priority,
        "account": account,
        "reply_to": reply_to or None,
        "wait_for": wait_for,
    }
    if jsonl and file is None:
        raise output.usage_error("--jsonl needs --file.")
    many = file is not None and (jsonl or file.endswith(SUFFIX))
    if not many:
        fields["idempotency_key"] = idempotency_key
    options = Options.read(fields, steps=steps, parameters=param or (), labels=label or (), deadline=deadline)
    if file is None or not many:
        from finetune_queue.cli.submit import submit as one

        return one(build_request(file, options), wait=wait, timeout=timeout, as_json=as_json)
    if wait:
        raise output.usage_error("--wait follows one job; for many, use: finetune watch.")
    from finetune_queue.cli.batch import submit_lines

    return submit_lines(file, options, batch=idempotency_key, as_json=as_json)
