"""The rules of evaluation, word for word and one crop at a time, in float64 on sorted lists."""

from __future__ import annotations

import itertools

import numpy as np

JUNK = -1


def sees(labels, query, crop, protocol):
    """What a gallery crop is for a query: True right, False wrong, None ignored."""
    same_person = labels.query_pids[query] == labels.gallery_pids[crop]
    same_camera = labels.query_camids[query] == labels.gallery_camids[crop]
    if labels.gallery_pids[crop] in protocol.junk_pids:
        return None
    if labels.query_in_gallery is not None and labels.query_in_gallery[query] == crop:
        return None
    if protocol.within == "camera" and not same_camera:
        return None
    if protocol.within == "continent":
        here, there = labels.query_columns["continent"], labels.gallery_columns["continent"]
        if here[query] != there[crop]:
            return None
    if not same_person:
        return False
    if protocol.positives == "any-camera":
        return True
    if protocol.positives == "other-camera":
        return None if same_camera else True
    same_seq = labels.query_columns["seq"][query] == labels.gallery_columns["seq"][crop]
    return None if same_seq or not same_camera else True


def ranking(scores, labels, query, protocol, tie):
    """The kept gallery crops of a query, best first, as (right?, pid)."""
    kept = []
    if labels.query_pids[query] in protocol.junk_pids:
        return kept
    for crop, score in enumerate(scores[query].tolist()):
        right = sees(labels, query, crop, protocol)
        if right is not None:
            second = {"worst": right, "best": not right, "stable": crop}[tie]
            kept.append((-score, second, crop, right, labels.gallery_pids[crop]))
    return [(right, pid) for *_, right, pid in sorted(kept)]


def ranks_of(scores, labels, query, protocol, tie):
    return [rank for rank, (right, _) in enumerate(ranking(scores, labels, query, protocol, tie), 1) if right]


def average_precision(ranks, kind):
    precisions = []
    for found, rank in enumerate(ranks, 1):
        precision = found / rank
        before = (found - 1) / (rank - 1) if rank > 1 else 1.0
        precisions.append(precision if kind == "step" else (precision + before) / 2)
    return sum(precisions) / len(precisions) if precisions else np.nan


def single_shot_ranks(scores, labels, query, protocol, tie):
    """The rank of the right crop in every gallery that holds one crop of each identity."""
    listed = ranking(scores, labels, query, protocol, tie)
    people = {}
    for place, (_, pid) in enumerate(listed):
        people.setdefault(pid, []).append(place)
    own = labels.query_pids[query]
    if own not in people:
        return []
    ranks = []
    for gallery in itertools.product(*people.values()):
        place = dict(zip(people, gallery, strict=True))[own]
        ranks.append(1 + sum(other < place for other in gallery))
    return ranks
