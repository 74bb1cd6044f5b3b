"""ENTIRe-ID and other person re-identification data sets: pack, load, stream, score.

Public names load on first use, so that `import entire_id` brings in neither torch nor datasets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entire_id.errors import EntireIdError
    from entire_id.evaluation.ranking import Scores, evaluate
    from entire_id.evaluation.reranking import RerankConfig, expand_queries, rerank
    from entire_id.loading.embed import embed, read_features
    from entire_id.loading.hf import load
    from entire_id.loading.reader import CropReader
    from entire_id.shards.diff import diff_versions
    from entire_id.shards.manifest import Manifest, read_manifest
    from entire_id.shards.pack import PackConfig, pack
    from entire_id.shards.repair import repair
    from entire_id.shards.verify import verify
    from entire_id.sources.layouts import open_source

__all__ = [
    "CropReader",
    "EntireIdError",
    "Manifest",
    "PackConfig",
    "RerankConfig",
    "Scores",
    "__version__",
    "diff_versions",
    "embed",
    "evaluate",
    "expand_queries",
    "load",
    "open_source",
    "pack",
    "read_features",
    "read_manifest",
    "repair",
    "rerank",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "errors": ["EntireIdError"],
    "evaluation.ranking": ["Scores", "evaluate"],
    "evaluation.reranking": ["RerankConfig", "expand_queries", "rerank"],
    "loading.embed": ["embed", "read_features"],
    "loading.hf": ["load"],
    "loading.reader": ["CropReader"],
    "shards.diff": ["diff_versions"],
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
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
