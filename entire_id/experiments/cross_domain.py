"""Train sets × test sets, networks × test sets, and how far the scores of one model lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from entire_id.evaluation.breakdown import Interval, middle_of, resample_means
from entire_id.evaluation.plots import plot_intervals
from entire_id.experiments.bench import Bench, Candidate, Task, score_candidates
from entire_id.experiments.config import TrainConfig
from entire_id.experiments.notes import own_notes, training_notes
from entire_id.experiments.results import DataSet, Result
from entire_id.experiments.tables import Outcome, Share, Table

__all__ = ["Spread", "compare_networks", "cross_domain", "find_candidates", "find_spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How far scores on several test sets lie apart.

    Attributes:
        mean: of the scores m₁ … mₙ, with its 95 % interval.
        deviation: √(Σ (mᵢ - mean)² / n), the standard deviation of the scores.
        width: highest less lowest.
        chance_deviation: which deviation is expected if the sets are equally hard, and chance alone parts the scores.
        chance_width: likewise which width.
    """

    mean: Interval
    deviation: float
    width: float
    chance_deviation: float
    chance_width: float


def find_spread(results: Sequence[Result], metric: str = "mAP") -> Spread:
    """Return how far the scores of one model on several test sets lie apart.

    People are drawn with replacement in every test set on its own (cluster bootstrap). Deviation and width are never 0,
    and larger than those of endless test sets, so that intervals around them would miss the truth: what draws bring
    about whose means were made equal stands beside them instead.
    """
    scores = np.array([one.metrics[metric].value for one in results])
    drawn = np.array(
        [
            resample_means([one.values[metric]], one.counted, one.pids, seed=number)[:, 0]
            for number, one in enumerate(results)
        ]
    )
    alike = drawn - drawn.mean(axis=1, keepdims=True)
    mean = Interval(float(scores.mean()), *middle_of(drawn.mean(axis=0)))
    chance = alike.std(axis=0).mean(), np.ptp(alike, axis=0).mean()
    return Spread(mean, float(scores.std()), float(np.ptp(scores)), *map(float, chance))


def find_candidates(
    trained_on: Sequence[Sequence[DataSet]], models: Sequence[str], base: TrainConfig | None = None
) -> tuple[Candidate, ...]:
    """Return the candidates of an experiment.

    Args:
        trained_on: of each that is trained, its data sets, which are joined.
        models: of each that is there, what `Candidate` takes.
        base: how the former are trained.
    """
    found = (
        []
        if base is None
        else [
            Candidate(" + ".join(one.name for one in sets), replace(base, datasets=tuple(one.path for one in sets)))
            for sets in trained_on
        ]
    )
    return (*found, *(Candidate(_model_name(model), model=model) for model in dict.fromkeys(models)))


def _model_name(model: str) -> str:
    """Return what tables call a model: a folder by its name, and `RUN/model`, which `train` writes, by the run."""
    if not Path(model).expanduser().is_dir():
        return model
    folder = Path(model).expanduser().resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def cross_domain(
    bench: Bench, candidates: Sequence[Candidate], tests: Sequence[DataSet], protocol: str = "market1501"
) -> Outcome:
    """Return mAP and Rank-1 of every candidate on every test set, and the spread over these.

    Raises:
        See `score_candidates`.
    """
    return _matrix(bench, "Cross-domain evaluation", "trained on", candidates, _tasks(tests, protocol))


def compare_networks(
    bench: Bench, base: TrainConfig, networks: Sequence[str], tests: Sequence[DataSet], protocol: str = "market1501"
) -> Outcome:
    """Return what `cross_domain` does, of several networks that are trained in the same way. Raises as it does."""
    candidates = [Candidate(_model_name(network), replace(base, model=network)) for network in dict.fromkeys(networks)]
    return _matrix(bench, "Architectures", "network", candidates, _tasks(tests, protocol))


def _tasks(tests: Sequence[DataSet], protocol: str) -> list[Task]:
    return [Task(test, protocol) for test in tests]


def _matrix(bench: Bench, title: str, head: str, candidates: Sequence[Candidate], tasks: Sequence[Task]) -> Outcome:
    tests = [task.test for task in tasks]
    found = dict(zip(candidates, score_candidates(bench, [(one, tasks) for one in candidates]), strict=True))
    tables = [_scores(name, metric, head, found, tests) for name, metric in (("mAP", "mAP"), ("Rank-1", "rank1"))]
    tables[0] = replace(tables[0], notes=(*own_notes(found, tests), *training_notes(found)))
    tables.append(_counts(found, tests))
    if len(tests) > 1:
        tables.insert(2, _spreads(head, found, tests))
    series = {
        candidate.name: {test.name: one.metrics["mAP"] for test, one in zip(tests, results, strict=True)}
        for candidate, results in found.items()
    }
    return Outcome(title, tuple(tables), {"scores": plot_intervals(series, ("tested on", "mAP (%)"), joined=False)})


def _scores(
    name: str, metric: str, head: str, found: Mapping[Candidate, Sequence[Result]], tests: Sequence[DataSet]
) -> Table:
    rows = tuple((candidate.name, *(one.metrics[metric] for one in results)) for candidate, results in found.items())
    return Table(name, (head, *(test.name for test in tests)), rows)


def _spreads(head: str, found: Mapping[Candidate, Sequence[Result]], tests: Sequence[DataSet]) -> Table:
    rows = []
    for candidate, results in found.items():
        spread = find_spread(results)
        lowest = min(range(len(tests)), key=lambda at: results[at].metrics["mAP"].value)
        numbers = (spread.deviation, spread.chance_deviation, spread.width, spread.chance_width)
        rows.append((candidate.name, spread.mean, *map(Share, numbers), tests[lowest].name))
    note = (
        "Of the mAP m₁ … mₙ on n test sets: mean m̄ = Σ mᵢ / n, standard deviation √(Σ (mᵢ - m̄)² / n), and "
        "highest less lowest. By chance: what is expected of sets that are equally hard, for so few people were asked."
    )
    columns = (
        *(head, "mean mAP", "standard deviation", "deviation by chance"),
        *("highest less lowest", "width by chance", "lowest on"),
    )
    return Table(f"Spread over {len(tests)} test sets", columns, tuple(rows), (note,))


def _counts(found: Mapping[Candidate, Sequence[Result]], tests: Sequence[DataSet]) -> Table:
    results = next(iter(found.values()))
    counts = ("num_query", "num_valid_query", "num_gallery")
    rows = tuple(
        (test.name, test.version, *(one.counts[name] for name in counts))
        for test, one in zip(tests, results, strict=True)
    )
    columns = ("test set", "version", "queries", "with a positive", "gallery crops")
    protocol = str(results[0].facts["protocol"])
    return Table("Test sets", columns, rows, (f"Scored by protocol {protocol}.",))
