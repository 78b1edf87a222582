"""The commands and their options. What a command does is in the module that it imports."""

import traceback
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from finetune_queue.cli import app_gateway, app_submit, output
from finetune_queue.cli.options import DEFAULT_ACCOUNT, AsJson, Commands, Private, Public, Timeout, public_or_private
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.plain_words import in_plain_words

app = Commands(
    name="finetune",
    help="Submit Segmind Fast Flux fine-tunes to the queue and follow them to verified weights.",
    epilog="Exit codes: 0 success, 1 the job or a check failed, 2 bad usage or request, 3 no such job, 4 the queue is "
    "out of reach, 5 time-out, 6 settings, 7 not possible, 8 not installed, 70 a defect, 130 Ctrl-C.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
dataset = Commands(help="Look at training data before it costs anything.")
app.add_typer(dataset, name="dataset")
app.add_typer(app_gateway.gateway, name="gateway")
app.add_typer(app_gateway.webhooks, name="webhooks")
dead = Commands(help="Messages that could not become a job, and events that a sink did not take.")
app.add_typer(dead, name="dead")
account = Commands(help="The kill switch for an account's paid submits.")
app.add_typer(account, name="account")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB...", help="The jobs' ids.", show_default=False)]


_COMPLETION = frozenset({"--install-completion", "--show-completion"})


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code. Whatever goes wrong becomes one message on standard error."""
    as_json = "--json" in arguments
    program = output.program()
    # A shell completes a command by its name, whatever path it is called by.
    name = "finetune" if _COMPLETION.intersection(arguments) else program
    try:
        code = typer.main.get_command(app).main(
            arguments, prog_name=name, complete_var="_FINETUNE_COMPLETE", standalone_mode=False
        )
    except TyperException as error:
        where = getattr(getattr(error, "ctx", None), "command_path", program)
        said = in_plain_words(error.format_message().rstrip(" ."))
        message = f"{said}{'' if said.endswith('?') else '.'} See: {where} --help"
        failure = CliError(message, ExitCode.USAGE, "usage")
    except Exception as error:  # noqa: BLE001 - the last place that can say it in words
        failure = output.explain(error) or _unexpected(error, show="--traceback" in arguments)
    else:
        return code or ExitCode.OK
    output.report(failure, as_json=as_json)
    return failure.exit_code


def _unexpected(error: Exception, *, show: bool) -> CliError:
    if show:
        traceback.print_exception(error)
    message = (
        f"This is a bug in finetune: {type(error).__name__}: {error}. "
        f"Please report it with the output of `{output.program()} --traceback COMMAND ...`."
    )
    return CliError(message, ExitCode.INTERNAL, "internal_error")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    _traceback: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error came from.")] = False,
) -> None:
    if version:
        from finetune_queue import __version__

        output.say(f"finetune-queue {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


app.command()(app_submit.submit)


@app.command()
def status(job: JobId, *, as_json: AsJson = False) -> ExitCode:
    """Show one job: its state, why it waits, its result."""
    from finetune_queue.cli.show import status as command

    return command(job, as_json=as_json)


@app.command("list")
def list_(
    *,
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help="Only jobs in this state.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Only jobs of this account.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="KEY=TEXT", help="Only jobs with this label.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many jobs at most.")] = 20,
    as_json: AsJson = False,
) -> ExitCode:
    """List jobs, newest first."""
    from finetune_queue.cli.show import list_jobs

    return list_jobs(state=state, account=account, labels=label or (), limit=limit, as_json=as_json)


@app.command()
def watch(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="One job; without it, all of them.")] = None,
    *,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> ExitCode:
    """Follow one job until it has ended, or the whole queue until Ctrl-C."""
    from finetune_queue.cli import watch as command

    if job is not None:
        return command.watch_job(job, timeout=timeout, as_json=as_json)
    if timeout is not None:
        raise output.usage_error("--timeout needs a JOB.")
    return command.watch_all(as_json=as_json)


@app.command()
def events(
    job: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Stay until the job has ended.")] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Show a job's events; as JSON, one CloudEvent per line."""
    from finetune_queue.cli.show import events as command

    return command(job, follow=follow, as_json=as_json)


@app.command()
def download(
    job: JobId,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A file, or a folder for JOB.safetensors.", show_default=False)
    ] = ".",
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace another file that is there.")] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Copy a job's verified weights to this machine, by default into the current folder."""
    from finetune_queue.cli.download import download as command

    return command(job, target, force=force, as_json=as_json)


@app.command()
def cancel(jobs: JobIds, *, as_json: AsJson = False) -> ExitCode:
    """Stop jobs. A training that Segmind already has continues there."""
    from finetune_queue.cli.change import cancel as command

    return command(jobs, as_json=as_json)


@app.command()
def retry(jobs: JobIds, *, as_json: AsJson = False) -> ExitCode:
    """Resume failed jobs, each at the stage that failed."""
    from finetune_queue.cli.change import retry as command

    return command(jobs, as_json=as_json)


@app.command()
def access(
    job: JobId,
    *,
    public: Public = False,
    private: Private = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Make the model of an ended job public or private at Segmind."""
    from finetune_queue.cli.change import access as command

    wanted = public_or_private(public=public, private=private)
    if wanted is None:
        raise output.usage_error("Say either --public or --private.")
    return command(job, public=wanted, as_json=as_json)


@app.command()
def resolve(
    job: JobId,
    *,
    adopt: Annotated[
        str | None, typer.Option("--adopt", metavar="ID", help="The job's training, by its finetune_id.")
    ] = None,
    resubmit: Annotated[
        bool,
        typer.Option("--resubmit", help="Segmind has no training for it: submit, and pay for, a new one."),
    ] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Say what became of the submit of a job that needs attention."""
    from finetune_queue.cli.operate import resolve as command

    return command(job, adopt=adopt, resubmit=resubmit, as_json=as_json)


@app.command()
def deliveries(job: JobId, *, as_json: AsJson = False) -> ExitCode:
    """Show which of a job's events still wait for its sinks, and the latest delivery attempts."""
    from finetune_queue.cli.deliveries import deliveries as command

    return command(job, as_json=as_json)


@app.command()
def redeliver(
    job: JobId,
    *,
    sink: Annotated[
        str | None, typer.Option("--sink", metavar="URL", help="Only to this sink, by its URL or id.")
    ] = None,
    as_json: AsJson = False,
) -> ExitCode:
    """Send all of a job's events to its sinks again."""
    from finetune_queue.cli.deliveries import redeliver as command

    return command(job, sink=sink, as_json=as_json)


@account.command("stop")
def account_stop(
    name: Annotated[str, typer.Argument(metavar="ACCOUNT", help="As doctor shows it.")] = DEFAULT_ACCOUNT,
    *,
    as_json: AsJson = False,
) -> ExitCode:
    """Stop paid submits at once, for every worker. Everything else goes on."""
    from finetune_queue.cli.operate import switch_submits

    return switch_submits(name, stopped=True, as_json=as_json)


@account.command("resume")
def account_resume(
    name: Annotated[str, typer.Argument(metavar="ACCOUNT", help="As doctor shows it.")] = DEFAULT_ACCOUNT,
    *,
    as_json: AsJson = False,
) -> ExitCode:
    """Allow paid submits again."""
    from finetune_queue.cli.operate import switch_submits

    return switch_submits(name, stopped=False, as_json=as_json)


@dead.command("list")
def dead_list(
    *,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many at most.")] = 20,
    as_json: AsJson = False,
) -> ExitCode:
    """List what was set aside, newest first."""
    from finetune_queue.cli.operate import list_dead

    return list_dead(limit=limit, as_json=as_json)


@dead.command("replay")
def dead_replay(
    letters: Annotated[list[str], typer.Argument(metavar="ID...", help="As the list shows them.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> ExitCode:
    """Send messages or events again, unchanged."""
    from finetune_queue.cli.operate import replay

    return replay(letters, as_json=as_json)


@dataset.command()
def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder of images, or a ZIP.", show_default=False)],
    *,
    trigger_word: Annotated[
        str | None, typer.Option("--trigger-word", "-t", metavar="WORD", help="Look for it in the captions.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Look for the trigger word in it.")
    ] = None,
    as_json: AsJson = False,
) -> ExitCode:
    """Show what a job would find wrong with a dataset, and what trains badly."""
    from finetune_queue.cli.dataset import check as command

    return command(path, trigger_word=trigger_word, prompt=prompt, as_json=as_json)


@app.command()
def doctor(
    *,
    api: Annotated[
        bool, typer.Option("--api", help="Ask Segmind: key, credits, limit, clock, webhook; 2 calls an account.")
    ] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Check Redis, workers, accounts and stores. Spends no API call without --api."""
    from finetune_queue.cli.doctor import doctor as command

    return command(api=api, as_json=as_json)


@app.command()
def demo(
    *,
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the weights go.", show_default=True)
    ] = Path("var/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Also keep logs, images and Redis's data.")] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Run one fine-tune from images to verified weights, on this machine and at no cost."""
    from finetune_queue.cli.demo import demo as command

    return command(folder, keep=keep, as_json=as_json)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def sandbox(context: typer.Context) -> ExitCode:
    """Run the Segmind emulator until Ctrl-C; its options: finetune sandbox --help."""
    from finetune_queue.cli.sandbox import sandbox as command

    return command(context.args)
