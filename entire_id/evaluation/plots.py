"""Pictures of scores, as matplotlib figures: no window is opened, and nothing is set but in the figure itself.

Curves differ in colour, dash and marker, and colours in lightness, so that all can be told apart in grey, too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError, MissingExtraError
from entire_id.evaluation.breakdown import Interval
from entire_id.evaluation.camera_pairs import CameraPairs
from entire_id.evaluation.scores import Scores
from entire_id.evaluation.verification import Roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "check_matplotlib",
    "figure_png",
    "plot_average_precision",
    "plot_camera_pairs",
    "plot_cmc",
    "plot_intervals",
    "plot_plane",
    "plot_roc",
]

# Okabe and Ito, "Color Universal Design", 2008: people with any kind of colour vision tell these apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_NUM_MARKS = 10  # on a curve
_DPI = 100
_SIZE_IN = 6.4, 4.0
_NUM_BINS = 20
_CELL_IN = 0.45  # of the heat map: holds two short numbers
_MARGIN_IN = 2.0
_PLACE_IN = 0.3  # of a number on the axis below
_MAX_NAMES = 35  # of a legend's column
_LONG_NAME = 10  # letters; longer ones stand aslant
_BARE_CELL_IN = 0.15  # holds a colour alone, and a camera's number beside it
_MAX_WRITTEN = 64  # cameras on a side; of more only the colours are drawn
_NO_PAIR = "0.8"  # a grey
_DARK_BELOW = 55  # percent: below it white text is read more easily on the colour map than black


def check_matplotlib() -> None:
    """Make sure that figures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _new_axes(1, 1)


def plot_cmc(models: Mapping[str, Scores]) -> Figure:
    """Return the CMC curves of models: the share of queries that are matched within so many ranks.

    Args:
        models: scores by the name that the legend gives them.

    Raises:
        EvaluationError: there are none.
        MissingExtraError: matplotlib is not installed.
    """
    if not models:
        raise EvaluationError("there are no scores to plot; give at least one model")
    figure, axes = _new_axes(*_SIZE_IN)
    for number, scores in enumerate(models.values()):
        _draw_curve(axes, number, np.arange(1, len(scores.cmc) + 1), 100 * scores.cmc)
    num_ranks = max(len(scores.cmc) for scores in models.values())
    axes.set_xticks([1, *range(step := max(2, num_ranks // 5), num_ranks + 1, step)])
    lowest = min(100 * scores.cmc[0] for scores in models.values())
    axes.set(xlabel="rank", ylabel="matching rate (%)", ylim=(max(0, lowest // 10 * 10 - 5), 102))
    _name_curves(axes, list(models), "lower right")
    return figure


def plot_roc(models: Mapping[str, Roc]) -> Figure:
    """Return the ROC curves of models, as far as each knows its own.

    Args:
        models: results of `evaluate_roc` by the name that the legend gives them.

    Raises:
        EvaluationError: there are none.
        MissingExtraError: matplotlib is not installed.
    """
    if not models:
        raise EvaluationError("there is no ROC to plot; give at least one model")
    figure, axes = _new_axes(*_SIZE_IN)
    for number, roc in enumerate(models.values()):
        fprs, tprs = roc.curve()
        _draw_curve(axes, number, 100 * fprs, 100 * tprs)
    axes.set(xlabel="false positive rate (%)", ylabel="true positive rate (%)", xscale="log", ylim=(-2, 102))
    _name_curves(axes, list(models), "best")
    return figure


def plot_average_precision(scores: Scores) -> Figure:
    """Return how many queries have which average precision, in bins of five percent; a line marks the mAP.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    precision = 100 * scores.average_precision[~np.isnan(scores.average_precision)]
    figure, axes = _new_axes(*_SIZE_IN)
    edges = np.linspace(0, 100, _NUM_BINS + 1).tolist()
    axes.hist(precision.clip(0, 100), edges, color=_COLOURS[0], edgecolor="white")
    axes.axvline(100 * scores.mAP, color="black", linestyle="--", label=f"mAP {100 * scores.mAP:.1f} %")
    axes.set(xlabel="average precision (%)", ylabel="queries", xlim=(0, 100))
    axes.legend(loc="upper left")
    return figure


def plot_camera_pairs(pairs: CameraPairs) -> Figure:
    """Return a heat map of the mAP by camera of the query and camera of the gallery.

    A cell says the mAP in percent and, below it, the number of queries; where a side has more than 64 cameras, it is a
    colour alone. It is grey and empty where no query has a positive.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    num_rows, num_columns = pairs.mAP.shape
    is_written = max(num_rows, num_columns) <= _MAX_WRITTEN
    cell_in = _CELL_IN if is_written else _BARE_CELL_IN
    figure, axes = _new_axes(_MARGIN_IN + cell_in * num_columns, _MARGIN_IN + cell_in * num_rows)
    axes.set_facecolor(_NO_PAIR)  # shows where a cell is masked
    percent = np.ma.masked_invalid(100 * pairs.mAP)
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    axes.set_xticks(range(num_columns), [str(camid) for camid in pairs.gallery_camids.tolist()], rotation=90)
    axes.set_yticks(range(num_rows), [str(camid) for camid in pairs.query_camids.tolist()])
    axes.set(xlabel="camera of the gallery", ylabel="camera of the query")
    figure.colorbar(image, ax=axes, label="mAP (%)", fraction=0.05, aspect=30)
    if is_written:
        for row, column in np.argwhere(pairs.num_valid_query).tolist():
            value = float(percent[row, column])
            text = f"{value:.0f}\n{pairs.num_valid_query[row, column]}"
            colour = "white" if value < _DARK_BELOW else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return figure


def plot_intervals(series: Mapping[str, Mapping[str, Interval]], labels: tuple[str, str], *, joined: bool) -> Figure:
    """Return numbers with their intervals, in percent, as dots with bars side by side.

    Args:
        series: by the name that the legend gives it, of each its numbers by the place on the axis below.
        labels: what stands below and on the left.
        joined: whether a line joins the numbers of a series.

    Raises:
        EvaluationError: there are none.
        MissingExtraError: matplotlib is not installed.
    """
    places = list(dict.fromkeys(place for numbers in series.values() for place in numbers))
    if not places:
        raise EvaluationError("there are no numbers to plot")
    figure, axes = _new_axes(max(_SIZE_IN[0], _PLACE_IN * len(places) * len(series) + _MARGIN_IN), _SIZE_IN[1])
    step = min(0.8 / len(series), 0.15)
    for number, (name, numbers) in enumerate(series.items()):
        values = 100 * np.array([[one.value, one.low, one.high] for one in numbers.values()])
        # Of one person nothing is known: a bar of no length.
        bars = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1])).T
        offset = (number - (len(series) - 1) / 2) * step
        axes.errorbar(
            [places.index(place) + offset for place in numbers],
            values[:, 0],
            bars,
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_DASHES[number % len(_DASHES)] if joined else "none",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(places)), places, rotation=30 if max(map(len, places)) > _LONG_NAME else 0)
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(-0.6, len(places) - 0.4))
    axes.grid(alpha=0.3, axis="y")
    for text in [*axes.legend(loc="best").get_texts(), *axes.get_xticklabels()]:
        text.set_parse_math(False)  # a name is no formula, whatever signs it holds
    return figure


def plot_plane(points: npt.NDArray[Any], names: npt.NDArray[Any], label: str) -> Figure:
    """Return points in a plane, coloured and marked by name.

    Args:
        points: (n, 2) floats.
        names: (n,) strings.
        label: what the names are, above the legend.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = _new_axes(_SIZE_IN[0] + _MARGIN_IN, _SIZE_IN[0])
    for number, name in enumerate(np.unique(names).tolist()):
        chosen = points[names == name]
        # Colours and markers, five and seven, repeat together after 35 names.
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=12, color=colour, marker=marker, linewidths=0, alpha=0.7, label=name)
    axes.set_xticks([])
    axes.set_yticks([])
    ncols = math.ceil(len(np.unique(names)) / _MAX_NAMES)
    legend = axes.legend(title=label, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, ncols=ncols)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def figure_png(figure: Figure) -> bytes:
    """Return the figure as PNG: the same bytes for the same figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _new_axes(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "drawing plots", "plots") from error
    figure = Figure((width_in, height_in), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _draw_curve(axes: Axes, number: int, x: npt.NDArray[Any], y: npt.NDArray[np.float64]) -> None:
    """Draw the curve of a model in its own colour, dash and marker."""
    axes.plot(
        x,
        y,
        color=_COLOURS[number % len(_COLOURS)],
        linestyle=_DASHES[number % len(_DASHES)],
        marker=_MARKERS[number % len(_MARKERS)],
        markevery=max(1, len(x) // _NUM_MARKS),
        markersize=4,
    )


def _name_curves(axes: Axes, names: list[str], place: Literal["lower right", "best"]) -> None:
    axes.grid(alpha=0.3)
    legend = axes.legend(axes.get_lines(), names, loc=place)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula, whatever signs it holds
