"""A Hub on loopback for the tests of publishing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from entire_id.hub.card import write_card
from entire_id.hub.facts import OwnerFacts

from builders import many_crops, pack_folder
from hub_server import HubServer, hub_server

FACTS = OwnerFacts("lab-1.0", "https://lab.org/licence")


@pytest.fixture
def hub_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub that the client in this process takes for the real one, as the user `owner` of the org `entire`."""
    with hub_server(tmp_path / "hub-site") as hub:
        hub.patch_client(monkeypatch, tmp_path / "hub-home")
        yield hub
    close_session()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return many_crops(tmp_path / "raw", 40, 4)


@pytest.fixture
def first(raw: Path, tmp_path: Path) -> Path:
    """Version 1.0.0: 40 people in some shards, with its card."""
    folder = pack_folder(raw, tmp_path / "one", version="1.0.0", shard_rows=40)
    write_card(folder, FACTS)
    return folder


@pytest.fixture
def second(raw: Path, first: Path, tmp_path: Path) -> Path:
    """Version 1.1.0: one person more, and one fewer in the gallery."""
    more = tmp_path / "raw-more"
    shutil.copytree(raw, more)
    for path in raw.glob("*/00000_*"):
        path_of_new = more / path.parent.name / path.name.replace("00000_", "00099_")
        path_of_new.write_bytes(path.read_bytes() + b"somebody else")
    for path in more.glob("*/00001_*"):
        path.unlink()
    folder = pack_folder(more, tmp_path / "two", version="1.1.0", shard_rows=40, previous=first)
    write_card(folder, FACTS, previous=first)
    return folder
