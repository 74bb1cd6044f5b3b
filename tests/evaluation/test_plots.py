from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from entire_id.errors import EvaluationError
from entire_id.evaluation.camera_pairs import CameraPairs, evaluate_camera_pairs
from entire_id.evaluation.features import score_blocks
from entire_id.evaluation.plots import figure_png, plot_average_precision, plot_camera_pairs, plot_cmc, plot_roc
from entire_id.evaluation.ranking import evaluate
from entire_id.evaluation.verification import evaluate_roc


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(0, 12, 200), rng.integers(0, 4, 200)
    features = (rng.normal(size=(12, 8))[pids] + rng.normal(size=(200, 8))).astype(np.float32)
    return [part for values in (features, pids, camids) for part in (values[:60], values[60:])]


@pytest.fixture(scope="module")
def scores(arrays):
    return evaluate(*arrays, max_rank=20)


@pytest.fixture(scope="module")
def pairs(arrays, scores) -> CameraPairs:
    return evaluate_camera_pairs(score_blocks(*arrays[:2]), scores.labels)


def test_cmc_curves_are_those_of_the_models(arrays, scores) -> None:
    other = evaluate(np.abs(arrays[0]), *arrays[1:], max_rank=10)
    (axes,) = plot_cmc({"first": scores, "second": other}).axes
    first, second = axes.get_lines()
    assert np.array_equal(first.get_ydata(), 100 * scores.cmc)
    assert np.array_equal(first.get_xdata(), np.arange(1, 21))
    assert np.array_equal(second.get_ydata(), 100 * other.cmc)
    assert axes.get_ylim()[0] < 100 * min(scores.cmc[0], other.cmc[0])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank", "matching rate (%)")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first", "second"]


def test_many_models_are_told_apart_without_their_colours(scores) -> None:
    (axes,) = plot_cmc({str(number): scores for number in range(12)}).axes
    looks = {(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 12
    with pytest.raises(EvaluationError, match="no scores to plot"):
        plot_cmc({})
    with pytest.raises(EvaluationError, match="no ROC to plot"):
        plot_roc({})


def test_names_are_shown_as_they_are(scores) -> None:
    names = ["$x^{", "_hidden", "<b>"]
    figure = plot_cmc(dict.fromkeys(names, scores))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == names
    assert figure_png(figure)


def test_roc_curve_is_that_of_the_record(arrays, scores) -> None:
    roc = evaluate_roc(score_blocks(*arrays[:2]), scores.labels, fprs=[0.1])
    (axes,) = plot_roc({"model": roc}).axes
    (line,) = axes.get_lines()
    assert line.get_ydata()[-1] == pytest.approx(100 * roc.tpr(0.1))
    assert line.get_xdata()[-1] == pytest.approx(10)
    assert axes.get_xscale() == "log"


def test_histogram_counts_every_scored_query(scores) -> None:
    precision = np.array([0.02, 0.03, 0.5, 1.0, np.nan])
    (axes,) = plot_average_precision(replace(scores, average_precision=precision, mAP=0.3875)).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert (len(heights), sum(heights)) == (20, 4)
    assert (heights[0], heights[10], heights[19]) == (2, 1, 1)
    assert axes.get_lines()[0].get_xdata()[0] == pytest.approx(38.75)
    assert axes.get_legend().get_texts()[0].get_text() == "mAP 38.8 %"


def test_heat_map_holds_the_pairs_and_writes_them_down(pairs) -> None:
    holey = replace(
        pairs,
        mAP=np.where(np.eye(4, dtype=bool), np.nan, pairs.mAP),
        num_valid_query=np.where(np.eye(4, dtype=bool), 0, pairs.num_valid_query),
    )
    axes = plot_camera_pairs(holey).axes[0]
    (image,) = axes.get_images()
    assert np.array_equal(np.ma.filled(image.get_array(), np.nan), 100 * holey.mAP, equal_nan=True)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("camera of the gallery", "camera of the query")
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert (0, 0) not in texts
    assert texts[2, 1] == f"{100 * holey.mAP[1, 2]:.0f}\n{holey.num_valid_query[1, 2]}"
    assert len(texts) == np.count_nonzero(holey.num_valid_query)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2", "3"]


def test_heat_map_of_many_cameras_is_of_a_size_to_be_looked_at() -> None:
    number = 200
    camids = np.arange(number)
    square = np.full((number, number), 0.5)
    figure = plot_camera_pairs(CameraPairs(camids, camids, square.astype(np.int64) + 1, square, square))
    assert figure.get_size_inches().max() < 40
    assert not figure.axes[0].texts


def test_pictures_are_the_same_bytes_every_time(scores, pairs) -> None:
    for draw in (lambda: plot_average_precision(scores), lambda: plot_camera_pairs(pairs)):
        png = figure_png(draw())
        assert png == figure_png(draw())
        Image.open(io.BytesIO(png)).load()


def test_nothing_global_is_imported() -> None:
    code = (
        "import sys, entire_id.evaluation.plots as p; p.check_matplotlib(); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
