"""What all verbs share: options, tables, progress. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entire_id.records import Progress

if TYPE_CHECKING:
    from entire_id.shards.manifest import Manifest

__all__ = [
    "EXIT_ERROR",
    "EXIT_PROBLEMS",
    "EXIT_STOPPED",
    "FolderArgument",
    "JobsOption",
    "JsonOption",
    "SecretOption",
    "SeedOption",
    "TombstonesOption",
    "numbers",
    "print_json",
    "print_table",
    "print_totals",
    "progress_bar",
    "quoted",
    "say",
    "tell_unscorable",
    "totals",
    "usage",
]

EXIT_ERROR, EXIT_PROBLEMS, EXIT_STOPPED = 1, 3, 130
_WIDE = 10_000  # columns of a table that no terminal folds
_PATIENCE_S = 2.0  # steps shorter than this show no progress bar

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same bytes.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Processes at work.")]
TombstonesOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What was erased for good, as keyed hashes; needs --secret.")
]
SecretOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Secret of the tombstones. Keep it out of every data set.")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A packed data set.")]


def say(text: str) -> None:
    """Talk to the user."""
    if sys.stderr is not None:
        print(text, file=sys.stderr)


def numbers(text: str, separator: str, kind: type[int | float], count: int) -> Any:  # noqa: ANN401 a tuple
    """Return the numbers of an option such as 256x128; None where it was not given."""
    try:
        numbers = tuple(kind(part) for part in text.split(separator))
    except ValueError:
        numbers = ()
    if text and len(numbers) != count:
        raise ValueError(f"{text!r} is not of the form {'256x128' if count == 2 else '0.5,0.5,0.5'}")
    return numbers if text else None


def print_json(value: object) -> None:
    """Print data for a machine."""
    print(json.dumps(value, indent=1))


@contextmanager
def usage() -> Iterator[None]:
    """Turn a value that a configuration refuses into a usage error."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print data for a reader; numbers stand to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    names, cells = list(columns), [list(row) for row in rows]
    table = Table(box=SIMPLE_HEAD if any(names) else None, pad_edge=False, show_header=any(names))
    for number, name in enumerate(names):
        is_number = cells and all(isinstance(row[number], (int, float)) for row in cells)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*(_cell(value) for value in row))
    width = None if sys.stdout.isatty() else _WIDE
    Console(highlight=False, markup=False, width=width).print(table)


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.2f}"
    return str(value)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give a progress bar on stderr that appears after two seconds, and only on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    bars = RichProgress(*columns, console=Console(stderr=True), disable=not is_terminal, transient=True)
    tasks: dict[str, Any] = {}
    start = time.monotonic()

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total or None, note="")
        if not bars.live.is_started and time.monotonic() - start > _PATIENCE_S:
            bars.start()
        bars.update(tasks[stage], completed=done, total=total or None, note=note)

    try:
        yield report
    finally:
        bars.stop()


def quoted(path: Path) -> str:
    """Return a path as it can be typed."""
    return quote(str(path))


def tell_unscorable(folder: str | Path, splits: Container[str]) -> bool:
    """Tell whether a packed data set cannot be scored, for want of query or gallery, and say so."""
    missing = [split for split in ("query", "gallery") if split not in splits]
    if missing:
        say(f"{folder} has no {' and no '.join(missing)}: it cannot be scored")
    return bool(missing)


def totals(manifest: Manifest) -> dict[str, Any]:
    """Return what a packed data set holds, for JSON and tables."""
    from dataclasses import asdict

    return {
        "name": manifest.name,
        "version": manifest.version,
        "format": manifest.format,
        "content_sha256": manifest.content_sha256,
        "shards": len(manifest.shards),
        "continents": list(manifest.continents),
        "splits": {split: asdict(total) for split, total in manifest.splits.items()},
    }


def print_totals(manifest: Manifest) -> None:
    """Print what the splits of a packed data set hold."""
    shards = manifest.shards
    rows = [
        [split, total.rows, total.people, sum(shard.split == split for shard in shards), total.image_bytes]
        for split, total in manifest.splits.items()
    ]
    print_table(["split", "crops", "identities", "shards", "image bytes"], rows)
