from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from entire_id.demo import DemoConfig, run_demo
from entire_id.errors import OutputExistsError
from entire_id.shards.verify import verify


def test_demo_goes_the_whole_way_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DemoConfig(tmp_path / "demo", num_crops=300)
    for _ in range(2):
        steps = run_demo(config)
        assert [step.name for step in steps] == [
            "sample", "pack", "verify", "load", "stream", "embed", "evaluate", "picture"
        ]  # fmt: skip
    monkeypatch.chdir(config.folder)
    assert set(datasets.load_dataset("entire-id", streaming=True)) == {"query", "gallery"}
    assert not verify(config.packed).problems
    for name in ("people.png", "ranking.png"):
        assert (config.folder / name).stat().st_size > 10_000
    results = {step.name: step.result for step in steps}
    assert results["evaluate"].startswith("mAP ")


def test_folder_of_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="no demo made"):
        run_demo(DemoConfig(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_others_put_into_a_demo_is_not_lost(tmp_path: Path) -> None:
    run_demo(DemoConfig(tmp_path / "demo", num_crops=60))
    (tmp_path / "demo" / "real").mkdir()
    with pytest.raises(OutputExistsError, match="it holds 'real', which no demo made"):
        run_demo(DemoConfig(tmp_path / "demo", num_crops=60))
    assert (tmp_path / "demo" / "real").is_dir()
