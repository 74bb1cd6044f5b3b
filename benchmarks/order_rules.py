"""The constants under test: how rows are cut into chunks and row groups, and how Parquet cuts pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow.parquet as pq

from entire_id.shards import plan

# As `datasets` 5.2 writes image sets.
CHUNKING = {"min_chunk_size": 256 << 10, "max_chunk_size": 1 << 20, "norm_level": 0}
WHOLE = 1 << 20  # rows in a chunk: more than anybody has


@dataclass(frozen=True)
class Rule:
    """The constants under test; the defaults are the package's."""

    chunk_rows: int = plan.CHUNK_ROWS
    group_rule: tuple[int, int, int] = (128, 512, 8)  # at least, at most, and a chunk in so many ends a group
    fixed_group_rows: int = 0  # cut every so many rows instead
    chunking: bool = False  # Parquet's content-defined chunking of pages

    def __str__(self) -> str:
        chunk = "whole" if self.chunk_rows == WHOLE else str(self.chunk_rows)
        low, high, one_in = self.group_rule
        groups = f"fixed {self.fixed_group_rows}" if self.fixed_group_rows else f"{low}-{high}, one in {one_in}"
        return f"{chunk} | {groups} | {'on' if self.chunking else 'off'}"


OURS = Rule()


@contextmanager
def applied(rule: Rule) -> Iterator[None]:
    """Let the package plan and write by `rule`."""

    def fixed_stops(chunk_rows, _):
        total = int(chunk_rows.sum())
        stops = np.arange(rule.fixed_group_rows, total + rule.fixed_group_rows, rule.fixed_group_rows)
        return np.minimum(stops, total)

    low, high, one_in = rule.group_rule
    values = {
        (plan, "CHUNK_ROWS"): rule.chunk_rows,
        (plan, "_MIN_TAIL_ROWS"): rule.chunk_rows // 2,
        (plan, "_MIN_GROUP_ROWS"): low,
        (plan, "_MAX_GROUP_ROWS"): high,
        (plan, "_GROUP_END_ONE_IN"): one_in,
    }
    if rule.fixed_group_rows:
        values[plan, "_group_stops"] = fixed_stops
    if rule.chunking:
        values[pq, "ParquetWriter"] = partial(pq.ParquetWriter, use_content_defined_chunking=CHUNKING)
    before = {(module, name): getattr(module, name) for module, name in values}
    try:
        for (module, name), value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
