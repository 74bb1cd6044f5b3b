"""ENTIRe-ID and other person re-identification data sets: pack, load, stream, score.

Public names load on first use, so that `import entire_id` brings in neither torch nor datasets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entire_id.errors import EntireIdError
    from entire_id.evaluation.camera_pairs import evaluate_camera_pairs
    from entire_id.evaluation.comparison import compare
    from entire_id.evaluation.dropin import FeatureAccumulator, compute_metrics, evaluate_rank
    from entire_id.evaluation.features import score_blocks
    from entire_id.evaluation.labels import Labels
    from entire_id.evaluation.protocols import PROTOCOLS, Protocol
    from entire_id.evaluation.ranking import evaluate, evaluate_blocks
    from entire_id.evaluation.reranking import RerankConfig, expand_queries, rerank
    from entire_id.evaluation.scores import Scores
    from entire_id.evaluation.verification import evaluate_open_set, evaluate_roc
    from entire_id.experiments.config import TrainConfig
    from entire_id.experiments.network import open_trained
    from entire_id.experiments.training import train
    from entire_id.hub.versions import diff_versions
    from entire_id.loading.dataset import CropDataset, Draw, ReadOptions
    from entire_id.loading.embed import embed, read_features
    from entire_id.loading.files import FetchOptions
    from entire_id.loading.hf import load
    from entire_id.loading.joining import join
    from entire_id.loading.models import ModelOptions, open_model
    from entire_id.loading.reader import CropReader
    from entire_id.loading.sampler import PKSampler
    from entire_id.loading.selection import LabelMap, Selection
    from entire_id.loading.stream import PKStream, StreamOptions
    from entire_id.loading.transforms import EvalTransform, TrainTransform, on_pil
    from entire_id.shards.erase import EraseRequest, erase
    from entire_id.shards.manifest import Manifest, read_manifest
    from entire_id.shards.pack import PackConfig, pack
    from entire_id.shards.repair import repair
    from entire_id.shards.verify import verify
    from entire_id.sources.layouts import open_source

__all__ = [
    "PROTOCOLS",
    "CropDataset",
    "CropReader",
    "Draw",
    "EntireIdError",
    "EraseRequest",
    "EvalTransform",
    "FeatureAccumulator",
    "FetchOptions",
    "LabelMap",
    "Labels",
    "Manifest",
    "ModelOptions",
    "PKSampler",
    "PKStream",
    "PackConfig",
    "Protocol",
    "ReadOptions",
    "RerankConfig",
    "Scores",
    "Selection",
    "StreamOptions",
    "TrainConfig",
    "TrainTransform",
    "__version__",
    "compare",
    "compute_metrics",
    "diff_versions",
    "embed",
    "erase",
    "evaluate",
    "evaluate_blocks",
    "evaluate_camera_pairs",
    "evaluate_open_set",
    "evaluate_rank",
    "evaluate_roc",
    "expand_queries",
    "join",
    "load",
    "on_pil",
    "open_model",
    "open_source",
    "open_trained",
    "pack",
    "read_features",
    "read_manifest",
    "repair",
    "rerank",
    "score_blocks",
    "train",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "errors": ["EntireIdError"],
    "evaluation.camera_pairs": ["evaluate_camera_pairs"],
    "evaluation.comparison": ["compare"],
    "evaluation.dropin": ["FeatureAccumulator", "compute_metrics", "evaluate_rank"],
    "evaluation.features": ["score_blocks"],
    "evaluation.labels": ["Labels"],
    "evaluation.protocols": ["PROTOCOLS", "Protocol"],
    "evaluation.ranking": ["evaluate", "evaluate_blocks"],
    "evaluation.reranking": ["RerankConfig", "expand_queries", "rerank"],
    "evaluation.scores": ["Scores"],
    "evaluation.verification": ["evaluate_open_set", "evaluate_roc"],
    "experiments.config": ["TrainConfig"],
    "experiments.network": ["open_trained"],
    "experiments.training": ["train"],
    "hub.versions": ["diff_versions"],
    "loading.dataset": ["CropDataset", "Draw", "ReadOptions"],
    "loading.embed": ["embed", "read_features"],
    "loading.files": ["FetchOptions"],
    "loading.hf": ["load"],
    "loading.joining": ["join"],
    "loading.models": ["ModelOptions", "open_model"],
    "loading.reader": ["CropReader"],
    "loading.sampler": ["PKSampler"],
    "loading.selection": ["LabelMap", "Selection"],
    "loading.stream": ["PKStream", "StreamOptions"],
    "loading.transforms": ["EvalTransform", "TrainTransform", "on_pil"],
    "shards.erase": ["EraseRequest", "erase"],
    "shards.manifest": ["Manifest", "read_manifest"],
    "shards.pack": ["PackConfig", "pack"],
    "shards.repair": ["repair"],
    "shards.verify": ["verify"],
    "sources.layouts": ["open_source"],
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOME_OF[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        from entire_id.errors import MissingExtraError

        raise MissingExtraError(error.name, name, "train") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
