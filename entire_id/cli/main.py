"""The program `entire-id`. Exit codes: 0 ok, 1 known error, 2 usage, 3 verification found problems."""

from __future__ import annotations

import io
import sys
from importlib import metadata
from typing import Annotated

import typer

from entire_id.cli import experiments, packing, releasing, scoring, training
from entire_id.cli.terminal import EXIT_ERROR, say
from entire_id.errors import EntireIdError

__all__ = ["app", "main"]

app = typer.Typer(
    name="entire-id",
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


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the caller closed it
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (EntireIdError, OSError) as error:
        say(f"error: {error}")
        sys.exit(EXIT_ERROR)
