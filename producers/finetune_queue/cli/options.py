"""The options that several commands have, and how all options are read."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from finetune_queue.cli.output import usage_error

F = TypeVar("F", bound=Callable[..., Any])


class _Once:
    """A command that refuses an option with one value that is given twice: the last would silently win. Its help does
    not call a flag a ``<bool>``, as if a value followed."""

    def get_params(self, ctx: Any) -> list[Any]:
        known: Any = super()
        found: list[Any] = known.get_params(ctx)
        for param in found:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return found

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known: Any = super()
        try:
            _, _, order = self.make_parser(ctx).parse_args(args=[*args])  # type: ignore[attr-defined]
        except TyperException as error:
            error.ctx = ctx  # type: ignore[attr-defined]  # whose help to see; of a missing value it is not said
            raise
        counts = {} if ctx.resilient_parsing else Counter(order)  # a shell may ask what can come next
        for param, count in counts.items():
            if count > 1 and param.param_type_name == "option" and not (param.multiple or param.is_flag):
                ctx.fail(f"{param.opts[0]} is given more than once")
        found: list[str] = known.parse_args(ctx, args)
        return found


class _Command(_Once, TyperCommand):
    pass


class _Group(_Once, TyperGroup):
    pass


class Commands(typer.Typer):
    """Commands that take each option with one value once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Register a command, see :meth:`typer.Typer.command`."""
        return super().command(name, cls=_Command, **options)


def _check_seconds(seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise typer.BadParameter("should be a number of seconds, 0 or more")
    return seconds


def public_or_private(*, public: bool, private: bool) -> bool | None:
    """Return whether the model is to be public, None if neither is given. In one option with two names the
    last would silently win, and who may use a model is too important for that.

    Raises:
        CliError: both are given.
    """
    if public and private:
        raise usage_error("Say either --public or --private.")
    return public if public or private else None


# That of `finetune_queue.contract`, which would load pydantic to read a command line.
DEFAULT_ACCOUNT: Final = "default"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", callback=_check_seconds, help="Stop waiting after this time. The job goes on."),
]
Public = Annotated[bool, typer.Option("--public", help="Anybody may use the model at Segmind.")]
Private = Annotated[bool, typer.Option("--private", help="Only the account may use it.")]
