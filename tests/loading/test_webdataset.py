"""Tar shards as webdataset reads them, and the recipe of docs/training.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entire_id.loading.dataset import CropDataset
from entire_id.loading.transforms import EvalTransform

from builders import CAMERAS, crop_names, pack_folder, write_crops

pytest.importorskip("torch")
wds = pytest.importorskip("webdataset")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """26 gallery crops of 4 people, of which one is a PNG and one shows nobody."""
    names = [*crop_names(), "bounding_box_test/00002_c001s0_5.png", "bounding_box_test/-1_c021s0_7.jpg"]
    folder = write_crops(tmp_path / "crops", names)
    (folder / "cameras.csv").write_text(CAMERAS)
    return folder


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    """`source`, as tar files: one for each of its two continents."""
    return pack_folder(source, tmp_path / "entire-id-tar", format="webdataset")


def shards(packed: Path) -> list[str]:
    found = sorted(map(str, packed.glob("data/gallery/*.tar")))
    assert len(found) == 2
    return found


def loaded(crops: Any, num_workers: int = 2) -> list[Any]:
    return list(wds.WebLoader(crops, batch_size=None, num_workers=num_workers))


def check_all_there(samples: list[Any], source: Path) -> None:
    """Every crop once, with its bytes and its labels."""
    files = {path.name: path for path in source.glob("bounding_box_test/*")}
    continents = {0: "asia", 1: "asia", 21: "europe"}
    assert sorted(sample["json"]["path"] for sample in samples) == sorted(files)
    for sample in samples:
        row = sample["json"]
        assert sample["jpg"] == files[row["path"]].read_bytes()
        pid, camid = re.match(r"(-?\d+)_c(\d+)s", row["path"]).groups()
        assert (row["pid"], row["camid"], row["continent"]) == (int(pid), int(camid), continents[int(camid)])


@pytest.mark.parametrize("num_workers", [1, 2])  # in this process webdataset leaves files open
def test_workers_share_the_shards_and_read_every_crop(packed: Path, source: Path, num_workers: int) -> None:
    crops = wds.WebDataset(shards(packed), shardshuffle=False).decode(only="json")
    check_all_there(loaded(crops, num_workers), source)


def test_ranks_share_the_shards(packed: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        crops = wds.WebDataset(shards(packed), shardshuffle=100, nodesplitter=wds.split_by_node)
        parts.append(loaded(crops.shuffle(10_000).decode(only="json"), 1))
    assert all(parts)
    check_all_there([sample for part in parts for sample in part], source)


def test_what_the_page_warns_of(packed: Path) -> None:
    with pytest.warns(UserWarning, match="shardshuffle"):
        wds.WebDataset(shards(packed))
    with pytest.raises(ValueError, match="fewer shards than workers"):
        loaded(wds.WebDataset(shards(packed)[:1], shardshuffle=False))


def test_recipe_gives_the_crops_and_labels_of_the_data_set(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed.parent)
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/training.md").read_text(), re.M | re.S)
    (code,) = (code for code in snippets if "import webdataset" in code)
    names: dict[str, Any] = {}
    exec(compile(code, "snippet", "exec"), names)
    found = [
        (label, image.tobytes())
        for images, labels in loaded(names["crops"])
        for image, label in zip(np.asarray(images), np.asarray(labels).tolist(), strict=True)
    ]
    crops = CropDataset(packed, "gallery", transform=EvalTransform(256, 128))
    expected = [(crop["label"], crop["image"].tobytes()) for crop in map(crops.__getitem__, range(len(crops)))]
    assert sorted(found) == sorted(expected)
    assert len(found) == 25
