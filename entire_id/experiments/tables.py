"""Tables of experiments, as Markdown to be read and as JSON to be computed with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from entire_id.evaluation.breakdown import Interval
from entire_id.evaluation.plots import figure_png
from entire_id.experiments.results import interval_values, write_json
from entire_id.staging import rewrite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Difference", "Outcome", "Row", "Share", "Table", "write_outcome"]

Cell = str | int | float | Interval | None
Row = tuple[Any, ...]  # of cells


class Difference(Interval):
    """An interval that is printed with signs, in percentage points."""

    @classmethod
    def of(cls, one: Interval) -> Self:
        """Return an interval that says so."""
        return cls(one.value, one.low, one.high)


class Share(float):
    """A number that is printed in percent."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns.

    Attributes:
        title: what it says.
        columns: what stands above.
        rows: cells, as many as there are columns: names, counts, shares, and intervals.
        notes: sentences below: where numbers come from.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return it as Markdown; scores in percent, intervals in brackets."""
        aligned = "|".join("---" if any(isinstance(row[at], str) for row in self.rows) else "---:" for at in self._ats)
        lines = [f"## {self.title}", "", _line(self.columns), f"|{aligned}|"]
        lines += [_line([_printed(cell) for cell in row]) for row in self.rows]
        return "\n".join([*lines, "", *(f"{note}\n" for note in (*self._legend(), *self.notes))])

    def _legend(self) -> list[str]:
        """Return how cells are printed."""
        kinds = {type(cell) for row in self.rows for cell in row}
        scores = ["Scores in percent; in brackets the 95 % interval, from people drawn with replacement."]
        shares = ["Shares in percent."]
        return scores if Interval in kinds else shares if Share in kinds else []

    @property
    def _ats(self) -> range:
        return range(len(self.columns))

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain values: an interval as number, lower and upper end; shares in [0, 1]."""
        rows = [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What an experiment found.

    Attributes:
        title: what was done.
        tables: in the order in which they are read.
        plots: by the name of the file, without its ending.
    """

    title: str
    tables: tuple[Table, ...]
    plots: Mapping[str, Figure]

    def markdown(self) -> str:
        """Return its tables as Markdown."""
        return "\n".join([f"# {self.title}", "", *(table.markdown() for table in self.tables)])

    def to_dict(self) -> dict[str, Any]:
        """Return its tables in plain values."""
        return {"title": self.title, "tables": [table.to_dict() for table in self.tables]}


def write_outcome(outcome: Outcome, out: Path) -> None:
    """Write `table.md`, `table.json` and the plots to a folder."""
    rewrite(out / "table.md", lambda _: outcome.markdown().encode())
    for name, figure in outcome.plots.items():
        picture = figure_png(figure)
        rewrite(out / f"{name}.png", lambda _, picture=picture: picture)  # type: ignore[misc]
    write_json(out / "table.json", outcome.to_dict())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _printed(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, Interval):
        sign = "+" if isinstance(cell, Difference) else ""
        if math.isnan(cell.value):
            return "–"
        ends = "" if math.isnan(cell.low) else f" ({100 * cell.low:{sign}.1f} to {100 * cell.high:{sign}.1f})"
        return f"{100 * cell.value:{sign}.1f}{ends}"
    if isinstance(cell, Share):
        return f"{100 * cell:.1f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def _plain(cell: Cell) -> Any:  # noqa: ANN401 any plain value
    if isinstance(cell, Interval):
        return interval_values(cell)
    return None if isinstance(cell, float) and math.isnan(cell) else cell
