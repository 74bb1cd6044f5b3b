"""The spread of scores over test sets: what of it chance brings."""

from __future__ import annotations

import numpy as np
import pytest

from entire_id.evaluation.breakdown import Interval
from entire_id.experiments.cross_domain import find_spread
from entire_id.experiments.results import Result


def result(rng: np.random.Generator, truth: float, people: int = 60, shots: int = 3) -> Result:
    """A result whose mAP lies about `truth`, with people who are easy or hard."""
    of_people = truth + 0.1 * rng.normal(size=people)
    values = {"mAP": np.repeat(of_people, shots) + 0.05 * rng.normal(size=people * shots)}
    pids = np.repeat(np.arange(people), shots)
    metrics = {"mAP": Interval(float(values["mAP"].mean()), 0.0, 1.0)}
    return Result({}, metrics, {}, {}, tuple(map(str, range(len(pids)))), pids, np.ones(len(pids)), values)


def test_the_spread_of_equal_sets_is_what_chance_is_said_to_bring() -> None:
    rng = np.random.default_rng(0)
    spreads = [find_spread([result(rng, 0.5) for _ in range(4)]) for _ in range(60)]
    found = np.array([(one.deviation, one.width, one.chance_deviation, one.chance_width) for one in spreads])
    deviation, width, *by_chance = found.mean(axis=0)
    assert (deviation, width) == pytest.approx(tuple(by_chance), rel=0.15)


def test_the_spread_of_sets_that_differ_is_larger_than_chance() -> None:
    rng = np.random.default_rng(1)
    spread = find_spread([result(rng, truth) for truth in (0.2, 0.5, 0.8)])
    assert spread.deviation > 10 * spread.chance_deviation
    assert spread.width == pytest.approx(0.6, abs=0.05)
    assert spread.mean.low < 0.5 < spread.mean.high


def test_the_interval_of_the_mean_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    means = [find_spread([result(rng, truth) for truth in (0.3, 0.6)]).mean for _ in range(100)]
    assert 88 <= sum(one.low <= 0.45 <= one.high for one in means) <= 100
