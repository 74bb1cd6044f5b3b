"""`load_dataset` with guards: never a stale cache, never a stranger of the same name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from entire_id.errors import (
    ConfigNotFoundError,
    DatasetNotFoundError,
    ManifestError,
    SplitNotFoundError,
)
from entire_id.shards.configs import content_description
from entire_id.shards.manifest import MANIFEST_FILE, README_FILE, read_manifest

if TYPE_CHECKING:
    import datasets

__all__ = ["load"]

_PREFIX = "hf://datasets/"
_NEITHER = "no such folder, and no repository name (owner/name)"


def load(
    path: str | Path,
    config: str = "default",
    *,
    split: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
) -> datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict:
    """Return what `datasets.load_dataset` returns, after checks that it does not make.

    Args:
        path: a packed folder, or a repository `owner/name` on the Hugging Face Hub. A folder of that name wins;
            `hf://datasets/owner/name` always means the Hub.
        config: `default`, `test` (query and gallery), `meta` (no pixels), or a continent.
        split: `train`, `val`, `query` or `gallery`; a slice such as `gallery[:100]` unless streaming. All by default.
        streaming: read rows as they are asked for, instead of converting all of them first.
        revision: branch, tag or commit of a repository.

    Raises:
        DatasetNotFoundError: no such folder or repository; a cached data set of the same name is not served instead.
        ConfigNotFoundError: no such config.
        SplitNotFoundError: no such split; the train part was not released by the authors of ENTIRe-ID.
        ManifestError: the folder's files are not those that its README and manifest describe.

    Example:
        >>> import entire_id
        >>> gallery = entire_id.load("entire-id", split="gallery")  # doctest: +SKIP
    """
    import datasets

    folder = Path(path)
    if folder.is_dir() and not str(path).startswith(_PREFIX):
        if revision is not None:
            raise ValueError(f"revision {revision!r} belongs to a repository; {str(path)!r} is a folder")
        configs = _check_folder(folder)
        target, revision = str(folder.resolve()), None
    else:
        name = str(path).removeprefix(_PREFIX)
        if "/" not in name:
            raise DatasetNotFoundError(path, _NEITHER)
        revision, configs = _check_repository(name, revision)
        target = _PREFIX + name  # the Hub, even where a folder has that name
    _check_names(path, configs, config, split)
    return datasets.load_dataset(target, config, split=split, streaming=streaming, revision=revision)


def _check_folder(folder: Path) -> dict[str, list[str]]:
    """Return the splits of every config, after a look at sizes: `datasets` would serve a cache of the old files."""
    manifest = read_manifest(folder)
    for entry in manifest.files:
        try:
            num_bytes = (folder / entry.path).stat().st_size
        except OSError as error:
            raise ManifestError(folder / MANIFEST_FILE, f"{entry.path} is missing") from error
        if num_bytes != entry.bytes:
            raise ManifestError(folder / MANIFEST_FILE, f"{entry.path} has {num_bytes:,} bytes, not {entry.bytes:,}")
    try:
        readme = (folder / README_FILE).read_text("utf-8")
    except OSError as error:
        raise ManifestError(folder / README_FILE, "missing; `datasets` finds no query without it") from error
    configs = _read_configs(folder / README_FILE, readme)
    _check_content(folder / README_FILE, configs, manifest.content_sha256)
    return _splits(configs)


def _check_repository(name: str, revision: str | None) -> tuple[str | None, dict[str, list[str]]]:
    """Return the commit that `revision` means now, and the splits of every config there."""
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        if not constants.HF_HUB_OFFLINE:
            revision = HfApi().dataset_info(name, revision=revision).sha
        readme = hf_hub_download(name, README_FILE, repo_type="dataset", revision=revision)
        manifest = hf_hub_download(name, MANIFEST_FILE, repo_type="dataset", revision=revision)
    except HFValidationError as error:
        raise DatasetNotFoundError(name, _NEITHER) from error
    except GatedRepoError as error:
        raise DatasetNotFoundError(name, "access is gated: ask for it on its page, then `hf auth login`") from error
    except LocalEntryNotFoundError as error:
        raise DatasetNotFoundError(name, "offline, and it is not in the cache") from error
    except HfHubHTTPError as error:
        raise DatasetNotFoundError(name, f"the Hub says no ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise DatasetNotFoundError(name, f"the Hub cannot be reached ({error})") from error
    configs = _read_configs(Path(readme), Path(readme).read_text("utf-8"))
    _check_content(Path(readme), configs, json.loads(Path(manifest).read_bytes()).get("content_sha256"))
    return revision, _splits(configs)


def _check_content(path: Path, configs: list[dict[str, Any]], content_sha256: str) -> None:
    if any(entry.get("description") != content_description(content_sha256) for entry in configs):
        raise ManifestError(path, "it describes another content than the manifest; `datasets` may serve old rows")


def _read_configs(path: Path, readme: str) -> list[dict[str, Any]]:
    try:
        return list(yaml.safe_load(readme.split("---\n")[1])["configs"])
    except (IndexError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ManifestError(path, "no configs in its YAML") from error


def _splits(configs: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {entry["config_name"]: [files["split"] for files in entry["data_files"]] for entry in configs}


def _check_names(path: str | Path, configs: dict[str, list[str]], config: str, split: str | None) -> None:
    if config not in configs:
        raise ConfigNotFoundError(path, config, configs)
    for name in re.findall(r"[a-z]+(?=\[|\+|$)", split or ""):
        if name not in configs[config]:
            raise SplitNotFoundError(path, name, configs[config])
