"""Pictures of crops: people by camera, and ranked lists with right and wrong framed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from entire_id.errors import EvaluationError
from entire_id.images import RgbImage
from entire_id.loading.embed import Features, read_features
from entire_id.loading.reader import CropReader
from entire_id.records import JUNK_PID, PART_OF_SPLIT, Person
from entire_id.score import score_features

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

    Raises:
        DatasetNotFoundError: no data set lies in `folder`.
        SplitNotFoundError: it has no such split.
        EvaluationError: the split shows nobody, only junk.
        ManifestError: the data set is damaged.
        ImageDecodeError: an image does not decode.
    """
    with CropReader(folder, split) as reader:
        rows_of: dict[int, dict[int, int]] = {}
        for row, (pid, camid) in enumerate(zip(reader.pids.tolist(), reader.camids.tolist(), strict=True)):
            if pid != JUNK_PID:
                rows_of.setdefault(pid, {}).setdefault(camid, row)
        if not rows_of:
            raise EvaluationError(f"{split} shows nobody, only junk; there is nobody to draw")
        people = sorted(rows_of, key=lambda pid: (-len(rows_of[pid]), pid))[:num_people]
        cells: list[list[Cell]] = [
            [(f"c{camid}", reader.pixels(row), None) for camid, row in sorted(rows_of[pid].items())[:num_cameras]]
            for pid in people
        ]
    return _draw_grid([str(Person(PART_OF_SPLIT[split], pid)) for pid in people], cells)


def draw_ranking(folder: Path, features: Path, num_queries: int = 8, num_ranks: int = 10) -> Image.Image:
    """Return ranked lists: a query in each row, then the gallery by similarity, right ones green and wrong ones red.

    The queries are spread evenly from the best to the worst by average precision. Crops of the query's person under its
    own camera are left out, as in the scores.

    Args:
        folder: a packed data set.
        features: folder that `embed` wrote.
        num_queries: rows at most.
        num_ranks: gallery crops in each.

    Raises:
        FeaturesError: there are no features, or they are of another content.
        EvaluationError: no query can be scored.
        ManifestError: the data set is damaged.
        ImageDecodeError: an image does not decode.
    """
    precision = score_features(folder, features).average_precision
    query, gallery = (read_features(folder, split, features) for split in ("query", "gallery"))
    scored = np.flatnonzero(~np.isnan(precision))
    best_first = scored[np.argsort(-precision[scored], kind="stable")]
    places = np.linspace(0, len(best_first) - 1, min(num_queries, len(best_first))).round().astype(np.int64)
    drawn = best_first[places].tolist()
    cells = []
    with CropReader(folder, "query") as queries, CropReader(folder, "gallery") as crops:
        for number in drawn:
            row: list[Cell] = [("query", queries.pixels(number), _QUERY)]
            for place, found in enumerate(_ranking(query, gallery, number, num_ranks), 1):
                right = gallery.pids[found] == query.pids[number]
                row.append((f"{place}", crops.pixels(found), _RIGHT if right else _WRONG))
            cells.append(row)
    return _draw_grid([str(Person("test", int(query.pids[number]))) for number in drawn], cells)


def _ranking(query: Features, gallery: Features, number: int, num_ranks: int) -> list[int]:
    same = (gallery.pids == query.pids[number]) & (gallery.camids == query.camids[number])
    kept = np.flatnonzero(~same & (gallery.pids != JUNK_PID))
    scores = (gallery.values @ query.values[number])[kept] / np.linalg.norm(gallery.values, axis=1)[kept]
    right = gallery.pids[kept] == query.pids[number]
    order = np.lexsort((right, -scores))  # as in the scores, a tie counts against the model
    ranking: list[int] = kept[order[:num_ranks]].tolist()
    return ranking


Cell = tuple[str, RgbImage, tuple[int, int, int] | None]
"""Label, pixels, colour of the frame."""


def _draw_grid(names: Iterable[str], rows: list[list[Cell]]) -> Image.Image:
    width, height = _CELL[0] + _GAP, _CELL[1] + _LABEL + _GAP
    margin = _CELL[0]
    columns = max((len(row) for row in rows), default=0)
    page = Image.new("RGB", (margin + columns * width + _GAP, len(rows) * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    for line, (name, row) in enumerate(zip(names, rows, strict=True)):
        top = _GAP + line * height
        pen.text((_GAP, top + _LABEL), name, _INK)
        for column, (label, pixels, frame) in enumerate(row):
            left = margin + column * width
            pen.text((left + 2, top), label, _INK)
            page.paste(_fit(pixels, frame), (left, top + _LABEL))
    return page


def _fit(pixels: RgbImage, frame: tuple[int, int, int] | None) -> Image.Image:
    """Return the crop at the size of a cell, its proportions kept, within its frame."""
    border = _FRAME if frame else 0
    size = _CELL[0] - 2 * border, _CELL[1] - 2 * border
    crop = ImageOps.pad(Image.fromarray(pixels), size, Image.Resampling.BICUBIC, _PAPER)
    return ImageOps.expand(crop, border, frame) if frame else crop
