"""Where this machine may still hold an older version of a data set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from entire_id.shards.configs import content_description
from entire_id.shards.manifest import MANIFEST_FILE, README_FILE, Manifest
from entire_id.staging import beside

__all__ = ["Leftover", "caches_of"]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder or file that holds something of a data set.

    Attributes:
        what: it is.
        path: where it lies.
        purge: command that removes it.
    """

    what: str
    path: Path
    purge: str


def caches_of(folder: str | Path, manifest: Manifest) -> list[Leftover]:
    """Return what on this machine holds something of a data set, as far as it can be told cheaply.

    That is: the folder itself with the features and lists beside it; what `datasets` converted (in
    `HF_DATASETS_CACHE`), of any version under the name of the data set or of its folder; what was downloaded from the
    Hub (to `HF_HUB_CACHE`), of any version under that name or with that content. Not found are folders that only their
    owner knows: features and reports elsewhere, `FetchOptions(cache_dir=…)`, `load_dataset(…, cache_dir=…)`, backups.

    Args:
        folder: the data set.
        manifest: of it.
    """
    folder = Path(folder).resolve()
    names = {_plain(manifest.name), _plain(folder.name)}
    return [*_beside(folder), *_converted(names), *_downloaded(names, manifest)]


def _plain(name: str) -> str:
    """Return a name as it can be compared: `datasets` writes MyCrops as my_crops, and owner/name as owner___name."""
    return re.sub(r"[^a-z0-9]", "", name.rpartition("___")[2].lower())


def _beside(folder: Path) -> Iterator[Leftover]:
    for what, path in (
        ("the data set itself", folder),
        ("features", beside(folder, ".features")),
        ("a list of rejected files", beside(folder, ".rejected.csv")),
        ("findings of verify", beside(folder, ".verifying")),
    ):
        if path.exists():
            yield Leftover(what, path, f"rm -r {quote(str(path))}")


def _converted(names: set[str]) -> Iterator[Leftover]:
    cache = os.environ.get("HF_DATASETS_CACHE")
    root = Path(cache).expanduser() if cache else _home() / "datasets"
    for path in sorted(root.glob("*/*/*/*/dataset_info.json")):  # name, config, version, hash
        info = _read_json(path)
        if _plain(path.parts[-5]) in names or _plain(str(info.get("dataset_name"))) in names:
            what = f"version {path.parts[-3]}, converted by datasets (config {info.get('config_name')})"
            yield Leftover(what, path.parent, f"rm -r {quote(str(path.parent))}")


def _downloaded(names: set[str], manifest: Manifest) -> Iterator[Leftover]:
    cache = os.environ.get("HF_HUB_CACHE")
    root = Path(cache).expanduser() if cache else _home() / "hub"
    content = content_description(manifest.content_sha256)
    for path in sorted(root.glob("datasets--*/snapshots/*")):
        found = _read_json(path / MANIFEST_FILE)
        repository = path.parents[1].name.rpartition("--")[2]
        if {_plain(repository), _plain(str(found.get("name")))} & names or content in _read(path / README_FILE):
            what = f"version {found.get('version', 'unknown')}, downloaded from the Hub"
            yield Leftover(what, path, f"hf cache rm {path.name}")


def _home() -> Path:
    """Return where the tools of Hugging Face keep what they keep."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _read_json(path: Path) -> dict[str, object]:
    try:
        fields = json.loads(_read(path))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
