from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import entire_id.score
from entire_id.errors import EvaluationError
from entire_id.evaluation.camera_pairs import evaluate_camera_pairs
from entire_id.evaluation.reranking import RerankConfig, rerank
from entire_id.loading.embed import embed
from entire_id.score import (
    ScoringConfig,
    check_columns,
    read_query_gallery,
    score,
    score_features,
    score_with_camera_pairs,
)


@pytest.fixture
def features(packed: Path, tmp_path: Path) -> Path:
    return embed(packed, ["query", "gallery"], "colour", tmp_path / "features")


@pytest.mark.parametrize("reranking", [None, RerankConfig(k1=5, k2=2)])
def test_scores_and_camera_pairs_come_of_one_ranking(
    packed: Path, features: Path, reranking: RerankConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops, config = read_query_gallery(packed, features), ScoringConfig(reranking=reranking)
    expected = score(crops, config)
    calls = []
    for name in ("rerank", "score_blocks"):
        function = getattr(entire_id.score, name)
        monkeypatch.setattr(
            entire_id.score, name, lambda *args, call=function, **kwargs: calls.append(call) or call(*args, **kwargs)
        )
    scores, pairs = score_with_camera_pairs(crops, config)
    assert len(calls) == 1
    assert scores.to_dict() == expected.to_dict() == score_features(packed, features, config).to_dict()
    if reranking is not None:
        blocks = rerank(crops.query.values, crops.gallery.values, reranking)
        assert pairs.to_dict() == evaluate_camera_pairs(blocks, crops.labels).to_dict()
    assert pairs.num_valid_query.sum() > 0


def test_protocols_without_camera_pairs_give_none(packed: Path, features: Path) -> None:
    crops, config = read_query_gallery(packed, features), ScoringConfig(protocol="multi_query")
    scores, pairs = score_with_camera_pairs(crops, config)
    assert pairs is None
    np.testing.assert_array_equal(scores.cmc, score(crops, config).cmc)
    check_columns(crops.labels, ["camera", "scene"], "multi_query")
    with pytest.raises(EvaluationError, match="no scores by camera pair, for protocol 'multi_query' pools queries"):
        check_columns(crops.labels, ["camera_pair"], "multi_query")


def test_configs_refuse_what_does_not_go_together() -> None:
    with pytest.raises(EvaluationError, match="pools the features of queries, and does not go with re-ranking"):
        ScoringConfig(protocol="multi_query", reranking=RerankConfig())
    with pytest.raises(EvaluationError, match="no protocol 'duke'"):
        ScoringConfig(protocol="duke")
