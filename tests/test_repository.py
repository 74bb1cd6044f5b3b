"""What means a repository on the Hub, and what a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from entire_id.errors import DatasetNotFoundError
from entire_id.loading.embed import features_folder
from entire_id.loading.files import open_files
from entire_id.repository import Repository, repository_at


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repository_at("sets/nowhere") == Repository("sets/nowhere", None)
    Path("sets").mkdir()
    for ask in (repository_at, open_files, lambda where: features_folder(where, "colour")):
        with pytest.raises(DatasetNotFoundError, match=r"no such folder in 'sets'\. .*: hf://datasets/sets/nowhere$"):
            ask("sets/nowhere")


def test_what_says_that_it_is_on_the_hub_is_looked_for_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sets/here").mkdir(parents=True)
    assert repository_at("sets/here") is None
    assert repository_at("hf://datasets/sets/nowhere") == Repository("sets/nowhere", None)
    assert repository_at("sets/nowhere@v1.0.0") == Repository("sets/nowhere", "v1.0.0")
    assert repository_at("sets/nowhere", "main") == Repository("sets/nowhere", "main")
