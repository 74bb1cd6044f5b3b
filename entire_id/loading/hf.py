"""`load_dataset` with guards: never the rows of another folder, version or data set of the same name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entire_id.errors import ConfigNotFoundError, ManifestError, RepositoryNotFoundError, SplitNotFoundError
from entire_id.repository import HUB, hub_file, repository_at
from entire_id.shards.configs import content_description, loading_rules, render_readme
from entire_id.shards.manifest import MANIFEST_FILE, README_FILE, read_manifest

if TYPE_CHECKING:
    import datasets

__all__ = ["load"]


def load(
    path: str | Path,
    config: str = "default",
    *,
    split: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
) -> datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict:
    """Return what `datasets.load_dataset` returns, after checks that it does not make.

    A folder's files are compared with its manifest by name and size; `entire-id verify` looks at every byte. Only the
    shards of the splits that are asked for are fetched and converted; `load_dataset` takes all of the config.

    Args:
        path: a packed folder, or a repository `owner/name` on the Hugging Face Hub, also `owner/name@v1.0.0`. A folder
            of that name wins; `hf://datasets/owner/name` always means the Hub.
        config: `default`, `test` (query and gallery), `meta` (no pixels), or a continent.
        split: `train`, `val`, `query` or `gallery`; several, `train+val`; a slice such as `gallery[:100]` unless
            streaming. All by default.
        streaming: read rows as they are asked for, instead of converting all of them first.
        revision: branch, tag or commit of a repository; its default branch by default.

    Raises:
        DatasetNotFoundError: no such folder; a cached data set of the same name is not served instead.
        RepositoryNotFoundError: no such repository or revision, or neither the Hub nor the cache has it.
        ConfigNotFoundError: no such config.
        SplitNotFoundError: no such split; the train part was not released by the authors of ENTIRe-ID.
        ManifestError: the folder's files are not those that its README and manifest describe.
        ValueError: a revision of a folder, or a slice of a stream.

    Example:
        >>> import entire_id
        >>> gallery = entire_id.load("entire-id", split="gallery")  # doctest: +SKIP
    """
    import datasets

    if streaming and split is not None and "[" in split:
        raise ValueError(f"a stream has no slices ({split!r}); take the split, then .skip(n) and .take(n)")
    repository = repository_at(path, revision)
    if repository is None:
        folder = Path(path).expanduser()
        if revision is not None:
            raise ValueError(f"revision {revision!r} belongs to a repository; {str(path)!r} is a folder")
        where, commit, configs = str(folder.resolve()), None, _check_folder(folder)
    else:
        where = HUB + repository.name
        commit, configs = _check_repository(*repository)
    _check_names(path, configs, config, split)
    builder = datasets.load_dataset_builder(where, config, revision=commit)
    if repository is not None and builder.hash != commit:
        # Offline, `datasets` takes the newest commit of its cache, whatever was asked for.
        why = f"revision {repository.revision or 'main'} is not in the cache, and the Hub cannot be reached"
        raise RepositoryNotFoundError(repository.name, why)
    if streaming:
        return builder.as_streaming_dataset(split)
    names = _names(split)
    if names and names < configs[config].keys():  # `datasets` would fetch and convert every split of the config
        files = {name: configs[config][name] for name in sorted(names)}
        features = builder.info.features
        part = datasets.load_dataset_builder(where, config, revision=commit, data_files=files, features=features)
        part.download_and_prepare()
        _check_rows(path, builder, part, names)
        return part.as_dataset(split)
    builder.download_and_prepare()
    return builder.as_dataset(split)


def _names(split: str | None) -> set[str]:
    """Return the splits that `split` names; none for all of them."""
    names = {part.partition("[")[0].strip() for part in split.split("+")} if split is not None else set()
    return set() if "all" in names else names


def _check_rows(
    path: str | Path, whole: datasets.DatasetBuilder, part: datasets.DatasetBuilder, names: set[str]
) -> None:
    """Compare the rows of some splits with what the README says, as `datasets` does for all of them."""
    for name in names:
        found, expected = (one.info.splits[name].num_examples for one in (part, whole))
        if found != expected:
            raise ManifestError(f"{path}/{README_FILE}", f"{name} has {found:,} rows, not {expected:,}")


def _check_folder(folder: Path) -> dict[str, dict[str, str]]:
    """Return the splits of every config with their files, after a look at names and sizes."""
    manifest = read_manifest(folder)
    listed = {entry.path: entry.bytes for entry in manifest.files}
    for path, num_bytes in listed.items():
        try:
            found = (folder / path).stat().st_size
        except OSError as error:
            raise ManifestError(folder / MANIFEST_FILE, f"{path} is missing", folder) from error
        if found != num_bytes:
            raise ManifestError(folder / MANIFEST_FILE, f"{path} has {found:,} bytes, not {num_bytes:,}", folder)
    for stranger in (found for part in ("data", "meta") for found in (folder / part).rglob("*.*")):
        if stranger.relative_to(folder).as_posix() not in listed:
            raise ManifestError(stranger, "the manifest does not list it, but `datasets` would load it", folder)
    try:
        readme = (folder / README_FILE).read_text("utf-8", errors="replace")
    except OSError as error:
        raise ManifestError(folder / README_FILE, "missing; `datasets` finds no query without it", folder) from error
    rules = loading_rules(readme)
    if rules != loading_rules(render_readme(manifest)):
        raise ManifestError(folder / README_FILE, "its configs are not those of the manifest", folder)
    return _splits(rules)


def _check_repository(name: str, revision: str | None) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the commit that `revision` means now, and the splits of every config there with their files."""
    commit, readme = hub_file(name, README_FILE, revision)
    _, manifest = hub_file(name, MANIFEST_FILE, commit)
    rules = loading_rules(readme.read_text("utf-8", errors="replace"))
    digest = json.loads(manifest.read_bytes()).get("content_sha256")
    configs = rules.get("configs", [])
    if not configs or any(entry.get("description") != content_description(digest) for entry in configs):
        raise ManifestError(f"{name}/{README_FILE}", "it describes another content than manifest.json")
    return commit, _splits(rules)


def _splits(rules: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {
        entry["config_name"]: {files["split"]: files["path"] for files in entry["data_files"]}
        for entry in rules["configs"]
    }


def _check_names(path: str | Path, configs: dict[str, dict[str, str]], config: str, split: str | None) -> None:
    if config not in configs:
        raise ConfigNotFoundError(path, config, configs)
    for name in sorted(_names(split)):
        if name not in configs[config]:
            others = [other for other, splits in configs.items() if name in splits]
            raise SplitNotFoundError(path, name, configs[config], others)
