"""Servers for the tests of loading."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from webserver import WebServer, web_server

if find_spec("torch") is None:
    collect_ignore = ["test_resume.py", "test_sampler.py", "test_stream.py", "test_stream_http.py"]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A web server of `tmp_path`, and so of `packed`."""
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with web_server(tmp_path) as server:
        yield server
        close_session()


@pytest.fixture
def hub(web: WebServer, packed: Path, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """The Hub, with `packed` as the repository owner/entire-id."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", web.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", web.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(packed.parent / "hub-cache"))
    web.folder = packed
    return web
