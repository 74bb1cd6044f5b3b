"""A page that shows an evaluation: one HTML file with everything in it, that asks no network.

It holds crops of people. It says so, only its owner may read the file, and it goes nowhere but where it is told to.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from entire_id.errors import OutputExistsError
from entire_id.evaluation.breakdown import Breakdown, Interval
from entire_id.evaluation.camera_pairs import MAX_CAMERAS, CameraPairs, why_no_camera_pairs
from entire_id.evaluation.comparison import Comparison, compare
from entire_id.evaluation.plots import (
    check_matplotlib,
    figure_png,
    plot_average_precision,
    plot_camera_pairs,
    plot_cmc,
)
from entire_id.evaluation.ranked_lists import RankedList, choose_queries
from entire_id.evaluation.scores import Scores
from entire_id.loading.embed import model_of
from entire_id.loading.files import open_files
from entire_id.loading.index import fetch_manifest
from entire_id.records import Progress, no_progress
from entire_id.score import rank_features, read_query_gallery
from entire_id.show import Cell, frame_crop, ranking_cells

__all__ = [
    "RankedRow",
    "Report",
    "ScoredModel",
    "check_report",
    "collect_report",
    "render_report",
    "scored_model",
    "write_report",
]

# How every report begins, and how it is known again. The policy keeps a browser from fetching anything at all.
_START = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="entire-id report">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="robots" content="noindex, noarchive">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
.warning { border: 3px solid; padding: .5rem 1rem; font-weight: bold; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; font-weight: bold; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
dt { font-weight: bold; }
dd { overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
.list { display: flex; flex-wrap: wrap; gap: .5rem; }
.list figure { margin: 0; width: 5.2rem; font-size: .75rem; line-height: 1.3; }
"""

# HTML allows no control characters but white space (HTML standard, 13.1 "Writing HTML documents").
_CONTROLS = {code: "\ufffd" for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\t\n\f\r"}

_JPEG_QUALITY = 90
_KINDS = {"best": "Best queries", "worst": "Worst queries", "random": "Random queries"}


@dataclass(frozen=True, slots=True, eq=False)
class ScoredModel:
    """Features and what they scored.

    Attributes:
        name: what the report calls the model.
        features: folder of its features.
        scores: of these features.
        camera_pairs: of the same ranking; None where there are none.
    """

    name: str
    features: Path
    scores: Scores
    camera_pairs: CameraPairs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RankedRow:
    """A ranked list with its pictures.

    Attributes:
        average_precision: of the query, in [0, 1].
        ranking: what stands first.
        cells: the query, then the gallery crops by rank.
    """

    average_precision: float
    ranking: RankedList
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """All that a report shows.

    Attributes:
        dataset: name of the data set.
        version: of its content.
        content_sha256: digest of its content.
        models: one, or the two that are compared.
        difference: the second less the first, where there are two.
        breakdowns: of the first.
        left_out: what there is none of, and why, in sentences without their full stop.
        ranked: ranked lists of the first, by kind: `best`, `worst`, `random`.
    """

    dataset: str
    version: str
    content_sha256: str
    models: tuple[ScoredModel, ...]
    difference: Comparison | None
    breakdowns: tuple[Breakdown, ...]
    left_out: tuple[str, ...]
    ranked: Mapping[str, Sequence[RankedRow]]


def scored_model(features: Path, scores: Scores, camera_pairs: CameraPairs | None = None) -> ScoredModel:
    """Return a model under the name that its features bear.

    Raises:
        FeaturesError: the folder holds none.
    """
    return ScoredModel(model_of(features), features, scores, camera_pairs)


def check_report(folder: str | Path, out: Path) -> None:
    """Make sure, before anything is scored, that a report can be written.

    Args:
        folder: the packed data set: a folder, a repository or a URL.
        out: file to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputExistsError: `out` is no earlier report, or it lies inside the data set.
    """
    check_matplotlib()
    target = out.resolve()
    if target.is_relative_to(Path(folder).resolve()):
        raise OutputExistsError(out, "it lies inside the data set, and a report is nothing to publish")
    _check_target(out, target)


def collect_report(
    folder: str | Path,
    models: Sequence[ScoredModel],
    num_queries: int = 4,
    num_ranks: int = 10,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Report:
    """Return what a report shows, with all crops in memory.

    Args:
        folder: a packed data set: a folder, a repository or a URL.
        models: one, or two to compare: the parts and ranked lists are of the first.
        num_queries: ranked lists of each kind at most.
        num_ranks: gallery crops in each.
        seed: of the random queries.
        progress: told how far it is.

    Raises:
        EvaluationError: the two were not scored on the same queries, gallery and protocol.
        FeaturesError, ManifestError, ImageDecodeError: see `score_features` and `CropReader`.
    """
    manifest, first, scores = fetch_manifest(open_files(folder)), models[0], models[0].scores
    num_cameras = len(np.unique(scores.labels.query_camids))
    columns = ["camera", "continent"]
    left_out = [why for why in [why_no_camera_pairs(scores.labels, scores.protocol)] if why]
    if num_cameras > MAX_CAMERAS:
        columns.remove("camera")
        left_out.insert(0, f"there are no scores by camera, for the queries have {num_cameras:,}")
    return Report(
        manifest.name,
        manifest.version,
        manifest.content_sha256,
        tuple(_told_apart(models)),
        compare(scores, models[1].scores) if len(models) > 1 else None,
        tuple(scores.by(column) for column in columns),
        tuple(left_out),
        _ranked_rows(folder, first, choose_queries(scores, num_queries, seed), num_ranks, progress),
    )


def _ranked_rows(
    folder: str | Path, model: ScoredModel, queries: Mapping[str, list[int]], num_ranks: int, progress: Progress
) -> dict[str, list[RankedRow]]:
    """Return the lists of all kinds; they are ranked at once."""
    progress("drawing the ranked lists", 0, 0)
    chosen = [query for numbers in queries.values() for query in numbers]
    lists = rank_features(read_query_gallery(folder, model.features), model.scores, chosen, num_ranks)
    precision = model.scores.average_precision[chosen].tolist()
    rows = iter([RankedRow(*row) for row in zip(precision, lists, ranking_cells(folder, lists), strict=True)])
    return {kind: list(islice(rows, len(numbers))) for kind, numbers in queries.items()}


def _told_apart(models: Sequence[ScoredModel]) -> list[ScoredModel]:
    """Return the models with names that differ: by the folders of their features, or else by number."""
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        names = [f"{model.name} ({model.features.resolve().name})" for model in models]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, 1)]
    return [replace(model, name=_clean(name)) for name, model in zip(names, models, strict=True)]


def write_report(report: Report, out: Path) -> None:
    """Write the page to `out`, in one step; an earlier report there is replaced. Only its owner may read it.

    Raises:
        OutputExistsError: `out` is something else.
        MissingExtraError: matplotlib is not installed.
    """
    target = out.resolve()
    _check_target(out, target)
    page = render_report(report).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _check_target(out: Path, target: Path) -> None:
    if not target.exists():
        return
    if not target.is_file():
        raise OutputExistsError(out, "it is no file")
    with target.open("rb") as file:
        if file.read(len(_START)) != _START.encode():
            raise OutputExistsError(out, "it is no report of this program")


def render_report(report: Report) -> str:
    """Return the page: the same text for the same report.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    scores = report.models[0].scores
    title = f"{' and '.join(model.name for model in report.models)} on {report.dataset} {report.version}"
    camera_pairs = report.models[0].camera_pairs
    parts = [
        f"{_START}<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{_text(title)}</h1>",
        '<p class="warning" role="note">This page contains crops of people; do not publish it.</p>',
        _facts(report),
        "<h2>Scores</h2>",
        _scores_table(report),
        *(f"<p>{_text(sentence)}.</p>" for sentence in _remarks(report)),
        "<h2>Curves</h2>",
        _cmc_figure(report.models),
        _precision_figure(report.models[0]),
        f"<h2>Parts of {_text(report.models[0].name)}</h2>",
        *(_breakdown_table(part) for part in report.breakdowns),
        *([] if camera_pairs is None else [_pairs_figure(camera_pairs)]),
        *(f"<p>{_text(sentence[0].upper() + sentence[1:])}.</p>" for sentence in report.left_out),
        f"<h2>Ranked lists of {_text(report.models[0].name)}</h2>",
        f"<p>{_text(_how_ranked(scores))}</p>",
        *(_ranked_section(kind, rows) for kind, rows in report.ranked.items()),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _text(text: str) -> str:
    """Return a text as it may stand between tags and in quoted attributes."""
    return html.escape(_clean(text))


def _clean(text: str) -> str:
    """Return a text without what a page cannot hold: control characters and half surrogate pairs."""
    return text.encode("utf-8", "replace").decode().translate(_CONTROLS)


def _facts(report: Report) -> str:
    scores = report.models[0].scores
    facts = {
        "data set": f"{report.dataset}, version {report.version}",
        "content": f"sha256:{report.content_sha256}",
        "model": ", ".join(model.name for model in report.models),
        "protocol": f"{scores.protocol.title} ({scores.protocol.source})",
        "ties": f"{scores.tie}: where a right crop stands among wrong ones of its score",
        "counts": scores.summary(),
    }
    if not scores.protocol.single_shot:
        facts["R-precision"] = ", ".join(f"{100 * model.scores.r_precision():.2f} %" for model in report.models)
    lines = [f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items()]
    return "\n".join(["<dl>", *lines, "</dl>"])


def _scores_table(report: Report) -> str:
    """Return mAP, ranks and mINP of each model with their intervals, and the difference."""
    columns: list[Mapping[str, Interval]] = [model.scores.intervals() for model in report.models]
    head = ["score"]
    for model in report.models:
        head += [f"{model.name}, %", "95 % interval"]
    if report.difference is not None:
        head += ["difference, points", "95 % interval"]
        columns.append(report.difference.differences)
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        row = [name.replace("rank", "Rank-")]
        for number, column in enumerate(columns):
            sign = "+" if number == len(report.models) else ""
            one = column.get(name)
            row += ["–", "–"] if one is None else [f"{100 * one.value:{sign}.2f}", one.ends(sign)]
        rows.append(row)
    return _table("Means over the queries; intervals by resampling people", head, rows)


def _remarks(report: Report) -> list[str]:
    """Return what a reader of the scores should know, in sentences without their full stop."""
    found = []
    for model in report.models:
        about = f" ({model.name})" if len(report.models) > 1 else ""
        found += [f"Warning{about}: {warning}" for warning in model.scores.warnings]
    if report.difference is not None:
        found.append(f"{report.models[1].name} against {report.models[0].name}: {report.difference.summary()}")
    return found


def _table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"<caption>{_text(caption)}</caption>", "<thead>", _row(head, "th"), "</thead>", "<tbody>"]
    return "\n".join(
        ['<div class="wide"><table>', *lines, *(_row(row, "td") for row in rows), "</tbody></table></div>"]
    )


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"


def _breakdown_table(part: Breakdown) -> str:
    head = [part.column, "queries scored", "mAP, %", "95 % interval", "Rank-1, %", "mINP, %"]
    rows = [
        [
            group.name,
            f"{group.num_valid_query:,} of {group.num_query:,}",
            _percent(group.mAP),
            Interval(group.mAP, group.mAP_low, group.mAP_high).ends(),
            _percent(group.rank1),
            _percent(group.mINP),
        ]
        for group in part.groups
    ]
    return _table(f"Queries by {part.column}", head, rows)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _cmc_figure(models: Sequence[ScoredModel]) -> str:
    png = figure_png(plot_cmc({model.name: model.scores for model in models}))
    values = "; ".join(
        f"{model.name}: {100 * model.scores.cmc[0]:.1f} % at rank 1, {100 * model.scores.cmc[-1]:.1f} % at rank "
        f"{len(model.scores.cmc)}"
        for model in models
    )
    return _figure(png, f"CMC curve. {values}.", "CMC: queries that are matched within so many ranks")


def _precision_figure(model: ScoredModel) -> str:
    png = figure_png(plot_average_precision(model.scores))
    alt = f"Histogram of the average precision of {model.scores.num_valid_query:,} queries."
    return _figure(png, alt, f"Average precision of the queries, {model.name}")


def _pairs_figure(pairs: CameraPairs) -> str:
    values = sorted((one["mAP"], name) for name, one in pairs.to_dict().items())
    alt = f"Heat map of the mAP of {len(values)} pairs of cameras."
    if values:
        (low, lowest), (high, highest) = values[0], values[-1]
        alt += f" The lowest is {100 * low:.1f} % ({lowest}), the highest {100 * high:.1f} % ({highest})."
    caption = (
        "mAP from camera to camera, the other cameras' crops ignored. In a cell: percent, and number of queries; grey "
        "and empty where no query has a right crop"
    )
    return _figure(figure_png(plot_camera_pairs(pairs)), alt, caption)


def _figure(png: bytes, alt: str, caption: str) -> str:
    return f"<figure>{_image(png, 'png', alt)}<figcaption>{_text(caption)}.</figcaption></figure>"


def _image(data: bytes, kind: str, alt: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{_text(alt)}">'


def _how_ranked(scores: Scores) -> str:
    """Return how the lists are to be read."""
    sentences = [
        "Framed blue: the query. Framed green and marked ✓: the same person. Framed red and marked ✗: somebody else. "
        "Below a crop stand its camera and its similarity. Gallery crops that the protocol ignores are left out."
    ]
    if scores.protocol.single_shot:
        sentences.append("The lists show the whole gallery, from which this protocol draws.")
    if scores.protocol.pool_queries:
        sentences.append("Of the query crops that were pooled, the first is shown.")
    return " ".join(sentences)


def _ranked_section(kind: str, rows: Sequence[RankedRow]) -> str:
    return "\n".join([f"<h3>{_KINDS[kind]}</h3>", *(_ranked_row(row) for row in rows)])


def _ranked_row(row: RankedRow) -> str:
    query, *found = row.cells
    figures = [_crop(query, f"query of {query.person}: {query.key}", f"query<br>c{query.camid}")]
    ranking = zip(found, row.ranking.is_right, row.ranking.similarities, strict=True)
    for cell, is_right, similarity in ranking:
        mark, word = ("✓", "right") if is_right else ("✗", "wrong")
        alt = f"rank {cell.label}, {word}: {cell.key}"
        figures.append(_crop(cell, alt, f"<b>{mark} {_text(cell.label)}</b><br>c{cell.camid}, {similarity:.3f}"))
    head = f"<p>{_text(query.person)}, {_text(query.key)}: AP {100 * row.average_precision:.1f} %</p>"
    return "\n".join([head, '<div class="list">', *figures, "</div>"])


def _crop(cell: Cell, alt: str, caption: str) -> str:
    """Return a crop with its caption, which is HTML."""
    file = io.BytesIO()
    frame_crop(cell).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)  # frames keep their colour
    return f"<figure>{_image(file.getvalue(), 'jpeg', alt)}<figcaption>{caption}</figcaption></figure>"
