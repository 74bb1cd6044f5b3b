"""A Hub on loopback for the tests of publishing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from hub_server import HubServer, hub_server


@pytest.fixture
def hub_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub that the client in this process takes for the real one, as the user `owner` of the org `entire`."""
    with hub_server(tmp_path / "hub-site") as hub:
        hub.patch_client(monkeypatch, tmp_path / "hub-home")
        yield hub
    close_session()
