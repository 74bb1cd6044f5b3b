"""Pictures of crops: people by camera, and ranked lists with right and wrong framed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from entire_id.errors import EvaluationError
from entire_id.images import decode_rgb
from entire_id.loading.embed import Features, read_features
from entire_id.loading.reader import CropReader
from entire_id.records import JUNK_PID, PART_OF_SPLIT, Person

__all__ = ["draw_people", "draw_ranking"]

_CELL = 64, 156  # px: width and height that a crop is fitted into
_GAP = 6
_LABEL = 16
_PAPER, _INK = (250, 250, 248), (60, 60, 60)
_QUERY, _RIGHT, _WRONG = (70, 110, 200), (40, 150, 70), (200, 60, 50)
_FRAME = 4


def draw_people(folder: Path, split: str, num_people: int = 8, num_cameras: int = 10) -> Image.Image:
    """Return a grid: a row for each person, a column for each camera, one crop in each cell.

    People seen by most cameras come first, by pid among equals.

    Args:
        folder: a packed data set.
        split: its split.
        num_people: rows at most.
        num_cameras: columns at most.
    """
    with CropReader(folder, split) as reader:
        rows_of: dict[int, dict[int, int]] = {}
        for row, (pid, camid) in enumerate(zip(reader.pids.tolist(), reader.camids.tolist(), strict=True)):
            if pid != JUNK_PID:
                rows_of.setdefault(pid, {}).setdefault(camid, row)
        people = sorted(rows_of, key=lambda pid: (-len(rows_of[pid]), pid))[:num_people]
        cells: list[list[Cell]] = [
            [(f"c{camid}", reader.read(row), None) for camid, row in sorted(rows_of[pid].items())[:num_cameras]]
            for pid in people
        ]
    return _draw_grid([str(Person(PART_OF_SPLIT[split], pid)) for pid in people], cells)


def draw_ranking(folder: Path, features: Path, num_queries: int = 6, num_ranks: int = 10, seed: int = 0) -> Image.Image:
    """Return ranked lists: a query in each row, then the gallery by similarity, right ones green and wrong ones red.

    Crops of the query's person under its own camera are left out, as in the scores.

    Args:
        folder: a packed data set.
        features: folder that `embed` wrote.
        num_queries: rows at most.
        num_ranks: gallery crops in each.
        seed: which queries are drawn.
    """
    query, gallery = (read_features(folder, split, features) for split in ("query", "gallery"))
    candidates = np.flatnonzero(np.isin(query.pids, gallery.pids[gallery.pids != JUNK_PID]))
    if not len(candidates):
        raise EvaluationError("no query identity is in the gallery; there is nothing to rank")
    drawn = np.random.default_rng(seed).permutation(candidates)[:num_queries].tolist()
    cells = []
    with CropReader(folder, "query") as queries, CropReader(folder, "gallery") as crops:
        for number in drawn:
            row: list[Cell] = [("query", queries.read(number), _QUERY)]
            for place, found in enumerate(_ranking(query, gallery, number, num_ranks), 1):
                right = gallery.pids[found] == query.pids[number]
                row.append((f"{place}", crops.read(found), _RIGHT if right else _WRONG))
            cells.append(row)
    return _draw_grid([str(Person("test", int(query.pids[number]))) for number in drawn], cells)


def _ranking(query: Features, gallery: Features, number: int, num_ranks: int) -> list[int]:
    same = (gallery.pids == query.pids[number]) & (gallery.camids == query.camids[number])
    kept = np.flatnonzero(~same & (gallery.pids != JUNK_PID))
    lengths = np.linalg.norm(gallery.values[kept], axis=1)
    order = np.argsort(-(gallery.values[kept] @ query.values[number]) / lengths, kind="stable")
    ranking: list[int] = kept[order[:num_ranks]].tolist()
    return ranking


Cell = tuple[str, bytes, tuple[int, int, int] | None]
"""Label, image bytes, colour of the frame."""


def _draw_grid(names: Iterable[str], rows: list[list[Cell]]) -> Image.Image:
    width, height = _CELL[0] + _GAP, _CELL[1] + _LABEL + _GAP
    margin = _CELL[0]
    columns = max((len(row) for row in rows), default=0)
    page = Image.new("RGB", (margin + columns * width + _GAP, len(rows) * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    for line, (name, row) in enumerate(zip(names, rows, strict=True)):
        top = _GAP + line * height
        pen.text((_GAP, top + _LABEL), name, _INK)
        for column, (label, data, frame) in enumerate(row):
            left = margin + column * width
            pen.text((left + 2, top), label, _INK)
            page.paste(_fit(data, frame), (left, top + _LABEL))
    return page


def _fit(data: bytes, frame: tuple[int, int, int] | None) -> Image.Image:
    """Return the crop at the size of a cell, its proportions kept, within its frame."""
    border = _FRAME if frame else 0
    size = _CELL[0] - 2 * border, _CELL[1] - 2 * border
    crop = ImageOps.pad(Image.fromarray(decode_rgb(data)), size, Image.Resampling.BICUBIC, _PAPER)
    return ImageOps.expand(crop, border, frame) if frame else crop
