"""What users type once a version is published: every way to load it, and what of it travels."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi

import entire_id
from entire_id.errors import RepositoryNotFoundError
from entire_id.hub.publish import plan_publish, publish
from entire_id.hub.repo import HubRepo
from entire_id.shards.manifest import read_manifest

from hub_server import READER, STRANGER, HubServer

NAME = "entire/entire-id"


@pytest.fixture(autouse=True)
def published(first: Path, second: Path, hub_site: HubServer) -> None:
    """Versions 1.0.0 and 1.1.0."""
    for folder in (first, second):
        publish(folder, HubRepo(NAME), plan_publish(folder, HubRepo(NAME)))
    hub_site.requests.clear()


def keys(folder: Path, split: str) -> set[str]:
    with entire_id.CropReader(folder, split) as crops:
        return set(crops.keys)


def fetched(hub: HubServer) -> set[str]:
    """Return the shards of which bytes were asked."""
    paths = {record.path.partition("?")[0] for record in hub.asked("^GET .*/resolve/.*/(data|meta)/")}
    return {path.split("/resolve/")[1].partition("/")[2] for path in paths}


def test_plain_load_dataset_takes_versions_and_configs(first: Path, second: Path, hub_site: HubServer) -> None:
    for revision, folder in (("v1.0.0", first), ("v1.1.0", second), (None, second)):
        rows = datasets.load_dataset(NAME, "test", revision=revision)
        assert {split: set(part["key"]) for split, part in rows.items()} == {
            split: keys(folder, split) for split in ("query", "gallery")
        }
    for config in datasets.get_dataset_config_names(NAME, revision="v1.0.0"):
        stream = datasets.load_dataset(NAME, config, revision="v1.0.0", split="query", streaming=True)
        assert {row["key"] for row in stream} == keys(first, "query")


@pytest.mark.parametrize("where", [f"{NAME}@v1.0.0", f"hf://datasets/{NAME}@v1.0.0"])
def test_one_split_brings_its_shards_alone(where: str, first: Path, hub_site: HubServer) -> None:
    rows = entire_id.load(where, split="query")
    assert set(rows["key"]) == keys(first, "query")
    assert rows[0]["image"].size == (24, 48)
    shards = {shard.path for shard in read_manifest(first).shards if shard.split == "query"}
    assert fetched(hub_site) == shards
    hub_site.requests.clear()
    again = entire_id.load(where, split="query[:3]")
    assert again["key"] == rows["key"][:3]
    assert not fetched(hub_site), "it is in the cache"
    both = entire_id.load(where)
    assert set(both["gallery"]["key"]) == keys(first, "gallery")


def test_the_whole_and_its_part_are_not_mixed_up(first: Path, second: Path) -> None:
    for version, folder in (("v1.0.0", first), ("v1.1.0", second)):
        for config in ("default", "test", "meta"):
            assert set(entire_id.load(NAME, config, split="gallery", revision=version)["key"]) == keys(
                folder, "gallery"
            )
        assert set(entire_id.load(NAME, split="query+gallery", revision=version)["key"]) == (
            keys(folder, "query") | keys(folder, "gallery")
        )


def test_rows_and_streams_take_versions(first: Path, second: Path, hub_site: HubServer) -> None:
    pytest.importorskip("torch")
    for version, folder in (("v1.0.0", first), ("v1.1.0", second)):
        crops = entire_id.CropDataset(f"{NAME}@{version}", "gallery", decode=False)
        local = entire_id.CropDataset(folder, "gallery", decode=False)
        assert crops.keys == local.keys
        assert [crops[row]["image"] for row in (0, 7)] == [local[row]["image"] for row in (0, 7)]
        options = entire_id.StreamOptions(unit_groups=1)
        streams = (
            entire_id.PKStream(where, "gallery", 4, 2, decode=False, options=options)
            for where in (f"{NAME}@{version}", folder)
        )
        remote, disk = ([batch["row"].tolist() for batch in stream] for stream in streams)
        assert remote == disk


def test_a_continent_is_fetched_alone_by_stream(hub_site: HubServer) -> None:
    rows = list(entire_id.load(f"{NAME}@v1.1.0", "meta", split="query", streaming=True))
    assert rows
    assert all(path.startswith("meta/query/") for path in fetched(hub_site))


def test_who_is_not_let_in_is_told_how_to_ask(hub_site: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (entire_id.load, lambda where: entire_id.CropDataset(where, "query")):
        monkeypatch.setenv("HF_TOKEN", STRANGER)
        with pytest.raises(RepositoryNotFoundError) as caught:  # private: a stranger does not learn that it is there
            ask(NAME)
        assert STRANGER not in str(caught.value)
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        HfApi().update_repo_settings(NAME, repo_type="dataset", private=False)
        monkeypatch.setenv("HF_TOKEN", STRANGER)
        with pytest.raises(RepositoryNotFoundError, match="access is gated: ask for it on its page"):
            ask(NAME)
        monkeypatch.setenv("HF_TOKEN", READER)
        ask(NAME)
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        HfApi().update_repo_settings(NAME, repo_type="dataset", private=True)


def test_a_rate_limit_is_waited_for(hub_site: HubServer) -> None:
    hub_site.fail("429", "GET .*/data/", wait_s=1)
    crops = entire_id.CropDataset(f"{NAME}@v1.0.0", "query", decode=False)
    assert len(crops[0]["image"]) > 100
