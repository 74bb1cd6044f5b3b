"""README.md: the YAML by which plain `datasets` finds configs and splits, and a page that says what this is."""

from __future__ import annotations

from typing import Any

import yaml

from entire_id.records import UNKNOWN_CONTINENT
from entire_id.schema import RESERVED_CONFIGS, columns_table, meta_columns, shard_columns, tar_features, yaml_features
from entire_id.shards.manifest import FORMATS, Manifest, Shard

__all__ = [
    "IDENTITY_NOTE",
    "NO_TRAIN_NOTE",
    "content_description",
    "front_matter",
    "join_page",
    "loading_example",
    "loading_rules",
    "read_front_matter",
    "render_readme",
    "splits_table",
]

DEFAULT_CONFIG = "default"
TEST_CONFIG = "test"
META_CONFIG = "meta"

IDENTITY_NOTE = (
    "An identity is a (part, pid): part is train (train, val) or test (query, gallery), and numbering may restart "
    "between\nthem. pid 0 is a person, camera 0 is a camera, pid -1 is junk, pid -2 a distractor."
)

NO_TRAIN_NOTE = "There is no train split: the source held none."


def render_readme(manifest: Manifest) -> str:
    """Return the text of the README.md that packing writes: all that is known without the owner."""
    return join_page(front_matter(manifest), _body(manifest))


def join_page(front: dict[str, Any], body: str) -> str:
    """Return a README of `front` as YAML, and `body`."""
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n\n{body}"


def read_front_matter(readme: str) -> dict[str, Any]:
    """Return the YAML that starts a README; empty where there is none, or it cannot be parsed."""
    if not readme.startswith("---\n"):
        return {}
    try:
        front = yaml.safe_load(readme.removeprefix("---\n").split("\n---\n")[0])
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def loading_rules(readme: str) -> dict[str, Any]:
    """Return the parts of a README's YAML that decide what `datasets` loads: `configs` and `dataset_info`."""
    front = read_front_matter(readme)
    return {name: front[name] for name in ("configs", "dataset_info") if name in front}


def content_description(content_sha256: str) -> str:
    """Return the `description` of every config.

    `datasets` hashes it into the name of its local cache. Version and counts alone, which it hashes too, still served
    the rows of another folder of that name.
    """
    return f"content sha256:{content_sha256}"


def _configs(manifest: Manifest) -> dict[str, list[Shard]]:
    """Return the shards of every config that has any."""
    shards = list(manifest.shards)
    configs = {
        DEFAULT_CONFIG: shards,
        TEST_CONFIG: [shard for shard in shards if shard.split in ("query", "gallery")],
    }
    if manifest.format == "parquet":
        configs[META_CONFIG] = shards
    if manifest.continents != (UNKNOWN_CONTINENT,):
        for continent in manifest.continents:
            configs[continent] = [shard for shard in shards if shard.continent == continent]
    return {name: members for name, members in configs.items() if members}


def _by_split(shards: list[Shard]) -> dict[str, list[Shard]]:
    splits: dict[str, list[Shard]] = {}
    for shard in shards:
        splits.setdefault(shard.split, []).append(shard)
    return splits


def front_matter(manifest: Manifest) -> dict[str, Any]:
    """Return the YAML by which `datasets` finds configs and splits, and the data set's name."""
    configs = _configs(manifest)
    return {
        "pretty_name": manifest.name,
        "configs": [_config(manifest, name, shards) for name, shards in configs.items()],
        "dataset_info": [_dataset_info(manifest, name, shards) for name, shards in configs.items()],
    }


def _config(manifest: Manifest, name: str, shards: list[Shard]) -> dict[str, Any]:
    folder, ending = ("meta", ".parquet") if name == META_CONFIG else ("data", FORMATS[manifest.format])
    pattern = "*" if name in RESERVED_CONFIGS else f"{name}-*"
    files = [{"split": split, "path": f"{folder}/{split}/{pattern}{ending}"} for split in _by_split(shards)]
    return {
        "config_name": name,
        **({"default": True} if name == DEFAULT_CONFIG else {}),
        "version": manifest.version,
        "description": content_description(manifest.content_sha256),
        "data_files": files,
    }


def _dataset_info(manifest: Manifest, name: str, shards: list[Shard]) -> dict[str, Any]:
    is_meta = name == META_CONFIG
    splits = [
        {
            "name": split,
            "num_bytes": sum(shard.meta_num_bytes if is_meta else shard.num_bytes for shard in members),
            "num_examples": sum(shard.rows for shard in members),
        }
        for split, members in _by_split(shards).items()
    ]
    if is_meta:
        features = yaml_features(meta_columns())
    else:
        features = yaml_features(shard_columns()) if manifest.format == "parquet" else tar_features()
    return {
        "config_name": name,
        "features": features,
        "splits": splits,
        "download_size": sum(manifest.entries[shard.meta_path if is_meta else shard.path].bytes for shard in shards),
        "dataset_size": sum(shard.meta_num_bytes if is_meta else shard.num_bytes for shard in shards),
    }


def splits_table(manifest: Manifest) -> str:
    """Return a Markdown table of what every split holds."""
    rows = [
        f"| {split} | {total.rows:,} | {total.people:,} | {total.image_bytes:,} |"
        for split, total in manifest.splits.items()
    ]
    return "\n".join(["| split | crops | identities | image bytes |", "|---|---|---|---|", *rows])


def loading_example(manifest: Manifest, name: str) -> str:
    """Return Python that takes the first crop out of a stream.

    Args:
        manifest: of the data set.
        name: what `load_dataset` is given.
    """
    access = 'row["image"]' if manifest.format == "parquet" else 'row["jpg"], row["json"]["pid"]'
    return f"""from datasets import load_dataset

for row in load_dataset({name!r}, split="{next(iter(manifest.splits))}", streaming=True):
    {access}  # a PIL image
    break"""


def _body(manifest: Manifest) -> str:
    unreleased = "" if "train" in manifest.splits else f"{NO_TRAIN_NOTE}\n\n"
    return f"""# {manifest.name} {manifest.version}

Person re-identification crops, packed by `entire-id`.

{splits_table(manifest)}

{unreleased}```python
{loading_example(manifest, manifest.name)}
```

{IDENTITY_NOTE}

{columns_table(shard_columns())}

These are pictures of people. Do not try to find out who they are, and do not pass the files on: ask their owner.
"""
