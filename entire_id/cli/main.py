"""The program `entire-id`. Exit codes: 0 ok, 1 known error, 2 usage, 3 verification found problems, 130 Ctrl-C."""

from __future__ import annotations

import io
import sys
import warnings
from importlib import metadata
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from entire_id.cli import experiments, packing, releasing, scoring, training
from entire_id.cli.terminal import EXIT_ERROR, EXIT_STOPPED, say
from entire_id.errors import EntireIdError

__all__ = ["app", "main"]

_GOING_ON = {"pack", "verify", "erase", "publish", "withdraw", "embed", "train", "experiment"}


class Verbs(TyperGroup):
    """The verbs; one that is stopped by Ctrl-C says what is left of it."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 typer brings its own click
        """Run the verb that was typed."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped; the same command goes on" if ctx.invoked_subcommand in _GOING_ON else "stopped")
            raise typer.Exit(EXIT_STOPPED) from None


app = typer.Typer(
    name="entire-id",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verbs in (packing, scoring, training, experiments, releasing):
    app.add_typer(verbs.app)


def _print_version(asked: bool) -> None:
    if asked:
        print(metadata.version("entire-id"))
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the package's version."),
    ] = False,
) -> None:
    """Pack, check, load and score ENTIRe-ID and other person re-identification data sets."""


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 as warnings.showwarning has it, and what follows
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Print a warning of Python's as talk: where in the source it was raised says nothing to a user."""
    say(f"warning: {' '.join(str(message).split())}")


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the caller closed it
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    try:
        app()
    except (EntireIdError, OSError) as error:
        say(f"error: {error}")
        sys.exit(EXIT_ERROR)
