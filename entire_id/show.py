"""Pictures of crops: people by camera, and ranked lists with right and wrong framed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from entire_id.errors import EvaluationError
from entire_id.evaluation.ranked_lists import RankedList
from entire_id.images import RgbImage
from entire_id.loading.reader import CropReader
from entire_id.records import PART_OF_SPLIT, Person
from entire_id.score import rank_features, read_query_gallery, score

__all__ = ["Cell", "draw_people", "draw_ranking", "frame_crop", "ranking_cells"]

_CELL = 64, 156  # px: width and height that a crop is fitted into
_GAP = 6
_LABEL = 16
_PAPER, _INK = (250, 250, 248), (60, 60, 60)
_QUERY, _RIGHT, _WRONG = (70, 110, 200), (40, 150, 70), (200, 60, 50)
_FRAME = 4

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A crop to be drawn.

    Attributes:
        label: what stands above it.
        person: whose it is, as people are named: `test/17`.
        camid: its camera.
        key: its name in the data set.
        pixels: (height, width, 3) uint8 RGB.
        frame: RGB colour of its frame: blue for a query, green for a right crop, red for a wrong one; None for none.
    """

    label: str
    person: str
    camid: int
    key: str
    pixels: RgbImage
    frame: Colour | None = None


def draw_people(folder: str | Path, split: str, num_people: int = 8, num_cameras: int = 10) -> Image.Image:
    """Return a grid: a row for each person, a column for each camera, one crop in each cell.

    People seen by most cameras come first, by pid among equals.

    Args:
        folder: a packed data set: a folder, a repository or a URL.
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
            if pid >= 0:
                rows_of.setdefault(pid, {}).setdefault(camid, row)
        if not rows_of:
            raise EvaluationError(f"{split} shows nobody, only junk; there is nobody to draw")
        people = sorted(rows_of, key=lambda pid: (-len(rows_of[pid]), pid))[:num_people]
        return _draw_grid(
            [_cell(reader, row, f"c{camid}") for camid, row in sorted(rows_of[pid].items())[:num_cameras]]
            for pid in people
        )


def draw_ranking(folder: str | Path, features: Path, num_queries: int = 8, num_ranks: int = 10) -> Image.Image:
    """Return ranked lists: a query in each row, then the gallery by similarity, right ones green and wrong ones red.

    The queries are spread evenly from the best to the worst by average precision. Crops of the query's person under its
    own camera are left out, as in the scores.

    Args:
        folder: a packed data set: a folder, a repository or a URL.
        features: folder that `embed` wrote.
        num_queries: rows at most.
        num_ranks: gallery crops in each.

    Raises:
        FeaturesError: there are no features, or they are of another content.
        EvaluationError: no query can be scored.
        ManifestError: the data set is damaged.
        ImageDecodeError: an image does not decode.
    """
    crops = read_query_gallery(folder, features)
    scores = score(crops)
    precision = scores.average_precision
    scored = np.flatnonzero(~np.isnan(precision))
    best_first = scored[np.argsort(-precision[scored], kind="stable")]
    places = np.linspace(0, len(best_first) - 1, min(num_queries, len(best_first))).round().astype(np.int64)
    lists = rank_features(crops, scores, best_first[places].tolist(), num_ranks)
    return _draw_grid(ranking_cells(folder, lists))


def ranking_cells(folder: str | Path, lists: Iterable[RankedList]) -> list[list[Cell]]:
    """Return of each list the crops to be drawn: the query, then the gallery by rank.

    Args:
        folder: a packed data set: a folder, a repository or a URL.
        lists: what `rank_features` gave.

    Raises:
        ManifestError: the data set is damaged.
        ImageDecodeError: an image does not decode.
    """
    with CropReader(folder, "query") as queries, CropReader(folder, "gallery") as gallery:
        return [
            [
                _cell(queries, one.query, "query", _QUERY),
                *(
                    _cell(gallery, row, str(rank), _RIGHT if is_right else _WRONG)
                    for rank, (row, is_right) in enumerate(zip(one.columns, one.is_right, strict=True), 1)
                ),
            ]
            for one in lists
        ]


def _cell(reader: CropReader, row: int, label: str, frame: Colour | None = None) -> Cell:
    person = str(Person(PART_OF_SPLIT[reader.split], int(reader.pids[row])))
    return Cell(label, person, int(reader.camids[row]), reader.keys[row], reader.pixels(row), frame)


def _draw_grid(lines: Iterable[list[Cell]]) -> Image.Image:
    """Return a page with a line of crops for each list, which the person of its first crop gives the name."""
    rows = list(lines)
    width, height = _CELL[0] + _GAP, _CELL[1] + _LABEL + _GAP
    margin = _CELL[0]
    columns = max((len(row) for row in rows), default=0)
    page = Image.new("RGB", (margin + columns * width + _GAP, len(rows) * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    for line, row in enumerate(rows):
        top = _GAP + line * height
        pen.text((_GAP, top + _LABEL), row[0].person, _INK)
        for column, cell in enumerate(row):
            left = margin + column * width
            pen.text((left + 2, top), cell.label, _INK)
            page.paste(frame_crop(cell), (left, top + _LABEL))
    return page


def frame_crop(cell: Cell) -> Image.Image:
    """Return the crop at the size of a cell, its proportions kept, within its frame."""
    border = _FRAME if cell.frame else 0
    size = _CELL[0] - 2 * border, _CELL[1] - 2 * border
    crop = ImageOps.pad(Image.fromarray(cell.pixels), size, Image.Resampling.BICUBIC, _PAPER)
    return ImageOps.expand(crop, border, cell.frame) if cell.frame else crop
