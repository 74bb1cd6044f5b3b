"""Every command and snippet that the pages show, run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import close_session
from typer.testing import CliRunner

from entire_id.cli.main import app
from entire_id.evaluation.protocols import PROTOCOLS
from entire_id.images import MAX_PIXELS
from entire_id.records import Reason
from entire_id.schema import COLUMNS
from entire_id.sources.files import MAX_FILE_BYTES
from entire_id.sources.layouts import LAYOUTS

from builders import crop_names, ended_well, pack_folder, write_crops, write_zip
from cousins import draw_crops, small_tree, write_tree
from hub_server import OWNER, hub_server

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/packing.md",
    "docs/sources.md",
    "docs/card.md",
    "docs/publishing.md",
    "docs/erasing.md",
    "docs/format.md",
    "docs/embedding.md",
    "docs/evaluation.md",
    "docs/report.md",
    "docs/reranking.md",
    "docs/training.md",
    "docs/experiments.md",
]
NEEDS = {
    "torch": ["torch"],
    "PKStream": ["torch"],
    "plots": ["matplotlib"],
    "import cross_domain": ["matplotlib"],
    "import webdataset": ["webdataset", "torch"],
    "import Accelerator": ["accelerate"],
    "import Trainer": ["transformers", "accelerate"],
    "import lightning": ["lightning"],
    "TrainConfig": ["torch", "transformers", "accelerate", "tensorboard"],
}  # by word of a snippet
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
SNIPPETS = [
    pytest.param(code, id=f"{page}-{number}")
    for page in PAGES
    if page != "docs/publishing.md"  # its snippet needs a Hub
    for number, (language, code) in enumerate(BLOCK.findall((ROOT / page).read_text()))
    if language == "python"
]


def commands(page: str) -> list[str]:
    """The lines of the console blocks of a page."""
    blocks = [code for language, code in BLOCK.findall((ROOT / page).read_text()) if language == "console"]
    return "".join(blocks).splitlines()


def run(command: list[str], folder: Path, **variables: str) -> None:
    environment = os.environ | variables
    done = subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr


def entire_id(line: str) -> list[str]:
    """The shown command, with this Python."""
    name, *arguments = shlex.split(line)
    assert name == "entire-id"
    return [sys.executable, "-m", "entire_id", *arguments]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # torch, of Lightning
@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code: str, packed: Path, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in filter(code.__contains__, NEEDS):
        for package in NEEDS[word]:
            pytest.importorskip(package)
    if "entire-id-tar" in code:
        pack_folder(crops, packed.with_name("entire-id-tar"), format="webdataset")
    monkeypatch.chdir(packed.parent)
    exec(compile(code, "snippet", "exec"), {})


def test_readme_commands_run_in_their_order(tmp_path: Path) -> None:
    for line in commands("README.md"):
        if line.startswith("entire-id"):
            run(entire_id(line), tmp_path)
    assert (tmp_path / "ranking.png").stat().st_size > 1000


def test_packing_commands_run_on_the_table_shown(tmp_path: Path) -> None:
    (table,) = (code for language, code in BLOCK.findall((ROOT / "docs/packing.md").read_text()) if language == "csv")
    (tmp_path / "crops.csv").write_text(table)
    write_crops(tmp_path, [line.split(",")[0] for line in table.splitlines()[1:]])
    for line in commands("docs/packing.md"):
        run(entire_id(line), tmp_path)
    assert not (tmp_path / "my-crops.rejected.csv").exists()


def test_commands_for_other_data_sets_run_on_trees_of_theirs(tmp_path: Path) -> None:
    duke = dict(draw_crops(small_tree("occluded-duke")))
    lists = {name: duke.pop(name) for name in list(duke) if name.endswith(".list")}
    write_zip(tmp_path / "DukeMTMC-reID.zip", {f"DukeMTMC-reID/{name}": data for name, data in duke.items()})
    write_tree(tmp_path / "Occluded_Duke", lists.items())
    for name, folder in (
        ("market1501", "Market-1501-v15.09.15"),
        ("msmt17-v2", "MSMT17_V2"),
        ("cuhk03-np-labeled", "cuhk03-np/labeled"),
        ("last", "LaST"),
    ):
        write_tree(tmp_path / folder, draw_crops(small_tree(name)))
    for line in commands("docs/sources.md"):
        run(entire_id(line), tmp_path)
    assert {path.name for path in tmp_path.glob("*.rejected.csv")} == {"occluded-duke.rejected.csv"}


def test_layouts_and_counts_are_those_of_the_code() -> None:
    layouts, counts = (ROOT / "docs/sources.md").read_text().split("## Layouts")[1].split("## Official counts")
    assert re.findall(r"^\| `([a-z][\w-]+)` \|", layouts, re.M) == list(LAYOUTS)
    rows = re.findall(r"^\| `([a-z][\w-]+)` \| ([\w, ]+) \| ([\d,]*) ?\| ([\d,]*) ?\| ([\d,]*) ?\|$", counts, re.M)
    shown = [(name, *splits.split(", "), *(number.replace(",", "") for number in rest)) for name, splits, *rest in rows]
    assert shown == [
        (name, *one.splits, *("" if number is None else str(number) for number in (one.crops, one.people, one.junk)))
        for name, layout in LAYOUTS.items()
        for one in layout.official
    ]


def test_erasing_commands_run(crops: Path, packed: Path) -> None:
    assert packed.parent == crops.parent
    for line in commands("docs/erasing.md"):
        run(entire_id(line), packed.parent)
    rejected = (packed.parent / "entire-id-1.2.0.rejected.csv").read_text()
    assert rejected.count(",erased,") == 9


def test_evaluation_commands_run(packed: Path) -> None:
    for line in commands("docs/evaluation.md"):
        run(entire_id(line), packed.parent)


def test_protocols_are_those_of_the_code() -> None:
    text = (ROOT / "docs/evaluation.md").read_text().split("## Protocols")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)`", text, re.M) == list(PROTOCOLS)


def test_report_commands_run(packed: Path) -> None:
    pytest.importorskip("matplotlib")
    for line in commands("docs/report.md"):
        run(entire_id(line), packed.parent)
    assert "do not publish it" in (packed.parent / "report.html").read_text()


def test_card_commands_run_with_the_facts_shown(packed: Path) -> None:
    (facts,) = (code for language, code in BLOCK.findall((ROOT / "docs/card.md").read_text()) if language == "toml")
    for line in commands("docs/card.md"):
        command, _, redirected = line.partition(" > ")
        run(entire_id(command), packed.parent)
        if redirected:
            (packed.parent / redirected).write_text(facts)
    assert "> The same crops again." in (packed.with_name("entire-id-1.1.0") / "README.md").read_text()


def test_publishing_commands_run_and_users_load_what_they_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (facts,) = (code for language, code in BLOCK.findall((ROOT / "docs/card.md").read_text()) if language == "toml")
    (tmp_path / "card.toml").write_text(facts)
    write_crops(tmp_path / "crops", crop_names(4))
    write_crops(tmp_path / "more-crops", crop_names(6))
    (code,) = (
        code for language, code in BLOCK.findall((ROOT / "docs/publishing.md").read_text()) if language == "python"
    )
    with hub_server(tmp_path / "hub-site") as hub:
        hub.tokens[OWNER] = dataclasses.replace(hub.tokens[OWNER], orgs=("my-lab",))
        hub.patch_client(monkeypatch, tmp_path / "hub-home")
        for line in commands("docs/publishing.md"):
            run(entire_id(line), tmp_path, **hub.environment(tmp_path / "hub-home"))
            if line.startswith("entire-id versions"):
                monkeypatch.chdir(tmp_path)
                exec(compile(code, "snippet", "exec"), {})
        assert set(hub.refs("my-lab/my-crops")) == {"main", "v1.2.0"}
    close_session()


def test_embedding_commands_run_with_the_function_shown(packed: Path) -> None:
    (code,) = (code for language, code in BLOCK.findall((ROOT / "docs/embedding.md").read_text()) if language == "py")
    (packed.parent / "my_model.py").write_text(code)
    for line in commands("docs/embedding.md"):
        run(entire_id(line), packed.parent)
    assert np.load(packed.with_name("entire-id.features") / "my_model-describe" / "query.npy").shape == (12, 6)


def test_training_commands_run_with_the_script_shown(packed: Path) -> None:
    pytest.importorskip("torch")
    (code,) = (code for language, code in BLOCK.findall((ROOT / "docs/training.md").read_text()) if language == "py")
    (packed.parent / "train.py").write_text(code)
    for line in commands("docs/training.md"):
        name, *arguments = shlex.split(line)
        assert name == "torchrun"
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        done = subprocess.run(command, cwd=packed.parent, check=False, capture_output=True, text=True, timeout=120)
        assert ended_well(done), done.stderr


def test_experiment_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS["TrainConfig"]:
        pytest.importorskip(package)
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for line in commands("docs/experiments.md"):
        if " tsne " not in line or importlib.util.find_spec("sklearn"):
            done = CliRunner().invoke(app, entire_id(line)[3:])  # one process: each would open torch anew
            assert done.exit_code == 0, (line, done.output, done.exception)
    assert "| drawn + other |" in (tmp_path / "cross-domain" / "table.md").read_text()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["steps"] == 20


def test_make_targets_shown_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = "".join((ROOT / page).read_text() for page in PAGES)
    shown = set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.M))
    assert {"demo", "test", "check"} <= shown <= targets


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^):]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_tables_are_those_of_the_code() -> None:
    packing, format_ = ((ROOT / page).read_text() for page in ("docs/packing.md", "docs/format.md"))
    reasons = re.findall(r"^\| `([\w-]+)` \|", packing.split("## What is rejected")[1], re.M)
    assert reasons == [reason.value for reason in Reason]
    assert f"{MAX_PIXELS:,} pixels, or more than {MAX_FILE_BYTES >> 20} MiB" in packing
    assert re.findall(r"^\| `(\w+)` \| (\w+) \|", format_, re.M) == [(column.name, column.dtype) for column in COLUMNS]


def test_every_page_is_tested() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
    assert pages == {*PAGES, "CHANGELOG.md"}
    assert "```" not in (ROOT / "CHANGELOG.md").read_text()


def test_packed_readme_example_runs(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format_ in ("parquet", "webdataset"):
        packed = pack_folder(crops, tmp_path / format_ / "entire-id", format=format_)
        monkeypatch.chdir(packed.parent)
        (code,) = (code for _, code in BLOCK.findall((packed / "README.md").read_text()))
        exec(compile(code, "card", "exec"), {})
