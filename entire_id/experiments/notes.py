"""What tables say of how their networks came about, where it bears on what the scores mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from entire_id.experiments.bench import Candidate
from entire_id.experiments.results import DataSet
from entire_id.loading.files import open_files
from entire_id.loading.index import fetch_manifest
from entire_id.loading.models import is_trained
from entire_id.records import PART_OF_SPLIT

__all__ = ["own_notes", "training_notes"]


def training_notes(candidates: Iterable[Candidate]) -> list[str]:
    """Return what is to be said where networks were trained, and where they began with what was trained before."""
    trainings = [one.training for one in candidates if one.training is not None]
    notes = ["Intervals are of people alone: another seed trains another network, whose scores are others."]
    if known := sorted({one.model for one in trainings if is_trained(one.model)}):
        notes.append(f"Networks began with {', '.join(known)}, trained before: what that has seen is not known here.")
    return notes if trainings else []


def own_notes(candidates: Iterable[Candidate], tests: Sequence[DataSet]) -> list[str]:
    """Return what is to be said of candidates that were trained on a data set that they are tested on."""
    contents = {test.content_sha256 for test in tests}
    trainings = [(one.name, one.training) for one in candidates if one.training is not None]
    own = [(name, one.split.split("+")) for name, one in trainings if contents & _contents(one.datasets)]
    asked = PART_OF_SPLIT["query"]
    known = sorted({name for name, splits in own if any(PART_OF_SPLIT.get(split.strip()) == asked for split in splits)})
    notes = []
    if len(known) < len({name for name, _ in own}):
        notes.append("What was trained on the train part of a test set has there the score within one domain.")
    if known:
        notes.append(
            f"Trained on the very people of a test set: {', '.join(known)}. There they meet nobody new: that is no "
            "score of re-identification."
        )
    return notes


def _contents(places: Iterable[str]) -> set[str]:
    return {fetch_manifest(open_files(place)).content_sha256 for place in places}
