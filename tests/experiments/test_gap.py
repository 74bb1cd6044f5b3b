"""The domain gap: against its formulas written out, about 0 within one domain, and larger the further apart."""

from __future__ import annotations

import numpy as np
import pytest

from entire_id.errors import EvaluationError
from entire_id.experiments.gap import kernel_width, measure_gap


def domain(seed: int, shift: float = 0.0, people: int = 40, crops: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    middle = np.zeros(8)
    middle[0] = shift
    looks = np.repeat(rng.normal(size=(people, 8)), crops, axis=0)
    return looks + 0.2 * rng.normal(size=looks.shape) + middle, np.repeat(np.arange(people), crops)


def gap(*domains):
    return measure_gap([values for values, _ in domains], [people for _, people in domains])


def by_hand(first, second):
    """MMD² over pairs of different people, with plain loops."""
    sets = [[(value / np.linalg.norm(value), who) for value, who in zip(*one, strict=True)] for one in (first, second)]
    every = [value for one in sets for value, _ in one]
    squares = [((a - b) ** 2).sum() for row, a in enumerate(every) for b in every[:row]]
    width = np.median(squares)

    def mean(ones, others, is_one_set):
        pairs = [(a, b) for a, who in ones for b, whose in others if not (is_one_set and who == whose)]
        return np.mean([np.exp(-((a - b) ** 2).sum() / width) for a, b in pairs])

    return mean(sets[0], sets[0], True) + mean(sets[1], sets[1], True) - 2 * mean(*sets, False)


def test_mmd_is_that_of_the_formula():
    first, second = domain(0, people=6), domain(1, 1.0, people=5)
    assert gap(first, second).value == pytest.approx(by_hand(first, second), abs=1e-12)


def test_one_domain_has_no_gap_and_others_a_larger_one_the_further_they_are():
    none, some, more = (gap(domain(0), domain(1, shift)) for shift in (0.0, 2.0, 5.0))
    assert none.low < 0 < none.high
    assert 0 < some.low < some.value < some.high < more.low


def test_intervals_draw_people_not_crops():
    """Every crop ten times over adds no person: the interval must not shrink."""
    (values, people), other = domain(0), domain(1, 1.0)
    few, many = gap((values, people), other), gap((np.tile(values, (10, 1)), np.tile(people, 10)), other)
    assert many.high - many.low > 0.8 * (few.high - few.low)


def test_few_people_that_lie_far_apart_have_a_gap_in_every_draw():
    corners = np.eye(4)
    for people in (2, 3, 4):
        who = np.repeat(np.arange(people), 2)
        noise = 0.01 * np.random.default_rng(0).normal(size=(2, len(who), 4))
        found = gap((corners[0] + noise[0], who), (corners[1] + noise[1], who))
        assert 1 < found.low <= found.value <= 2


def test_gaps_by_one_width_grow_with_the_distance():
    def at(angle: float) -> tuple[np.ndarray, np.ndarray]:
        values, people = domain(int(10 * angle))
        turned = np.array([np.cos(angle), np.sin(angle), *np.zeros(6)])
        return 10 * turned + values, people

    sets = [at(angle) for angle in (0.0, 1.0, 2.0, 3.14)]
    width = kernel_width([values for values, _ in sets])
    gaps = [measure_gap([sets[0][0], one[0]], [sets[0][1], one[1]], width).value for one in sets[1:]]
    assert gaps == sorted(gaps)
    assert kernel_width([np.concatenate([values for values, _ in sets])]) == width


def test_one_person_makes_no_gap():
    with pytest.raises(EvaluationError, match="at least 2 people"):
        gap(domain(0), domain(1, people=1))
