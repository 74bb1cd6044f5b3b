"""The loading script reads raw crops as packing does. `make test-datasets3` runs it by `load_dataset`."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType

import datasets
import pytest

from entire_id import images, records, schema
from entire_id.images import image_size
from entire_id.sources import cameras, entire, files

from builders import CAMERAS, crop_names, image_bytes, pack_folder, rejected_rows, write_crops

ROOT = Path(__file__).parents[1]
PATH = ROOT / "loading_script" / "load_entire_id.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("load_entire_id", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def rows_of(script: ModuleType, folder: Path, config: str = "default") -> dict[str, dict[str, dict]]:
    """Split → key → row, images undecoded."""
    builder = script.EntireId(config_name=config, data_dir=str(folder))
    return by_key(builder.as_streaming_dataset())


def by_key(splits: dict[str, datasets.IterableDataset]) -> dict[str, dict[str, dict]]:
    return {str(split): {row["key"]: row for row in rows.decode(False)} for split, rows in splits.items()}


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Crops among everything that is none."""
    names = [
        *crop_names(2),
        "bounding_box_train/00000_c000s0_1.png",
        "bounding_box_train/-1_c021s3_77.JPEG",
        "query/deeper/2147483647_c2147483647s2147483647_9223372036854775807.jpg",
        "query/00009_c001s0_1.v2.jpg",  # name
        "query/9_c21.jpg",  # name
        "query/2147483648_c0s0_0.jpg",  # number
        "query/0_c0s0_9223372036854775808.jpg",  # number
        "query/00000_c005s0_1.jpg",  # its continent cannot name a config
        "query/00001_c001s0_5.jpg",  # an ending to each, one key
        "query/00001_c001s0_5.png",
        "other/00001_c001s0_5.jpg",
        "loose.jpg",
        "query/50%/00001_c000s0_6.jpg",
        "query/a.b/00001_c000s0_6.jpg",
    ]
    crops = write_crops(tmp_path / "crops", names)
    (crops / "cameras.csv").write_text(
        "camid , continent\n0,Asia\n21, North America \n5,test\n1,\n", encoding="utf-8-sig"
    )
    good = image_bytes(7)
    for number, data in enumerate(
        (b"", good[:40], good[:-2], b"GIF89a", good[:2] + b"\xff" + b"\0" * 99, b"\x89PNG\r\n\x1a\n", good + b"tail")
    ):
        (crops / "query" / f"00003_c000s0_{number}.jpg").write_bytes(data)
    (crops / "query" / "Thumbs.db").write_bytes(b"x")
    (crops / "query" / "00004_c000s0_1.jpg").symlink_to(crops / "query" / "00000_c000s0_760487.jpg")
    (crops / "query" / "00004_c000s0_2.jpg").symlink_to("/etc/passwd")
    (crops / "query" / "00004_c000s0_3.jpg").symlink_to("nowhere")
    (crops / "query" / "back\\slash.jpg").write_bytes(good)
    (crops / os.fsdecode(b"query/00005_c000s0_\xff.jpg")).write_bytes(good)
    return crops


def test_it_reads_what_packing_packs_and_leaves_out_what_packing_rejects(
    script: ModuleType, messy: Path, tmp_path: Path
) -> None:
    folder = pack_folder(messy, tmp_path / "entire-id")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = rows_of(script, messy)
    expected = by_key(datasets.load_dataset(str(folder), streaming=True))
    assert found == expected
    assert list(found) == ["train", "query", "gallery"]
    told: Counter[str] = Counter()
    for warning in caught:
        for part in str(warning.message).split(" left out: ")[1].split("), "):
            number, reason = part.split(" ")[:2]
            told[reason] += int(number)
    assert told == Counter(row["reason"] for row in rejected_rows(folder))
    assert len(told) >= 9


@pytest.mark.parametrize("config", ["default", "test", "asia", "europe"])
def test_configs_are_those_of_the_packed_folder(script: ModuleType, config: str, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", [*crop_names(), "bounding_box_train/00000_c000s0_1.png"])
    (crops / "cameras.csv").write_text(CAMERAS)
    folder = pack_folder(crops, tmp_path / "entire-id")
    assert rows_of(script, crops, config) == by_key(datasets.load_dataset(str(folder), config, streaming=True))


def test_columns_and_types_are_those_of_the_schema(script: ModuleType) -> None:
    assert list(script.FEATURES) == [column.name for column in schema.shard_columns()]
    assert script.FEATURES.arrow_schema.equals(schema.arrow_schema(schema.shard_columns()))


def test_its_rules_are_those_of_the_package(script: ModuleType) -> None:
    assert script.NAME.pattern == entire._NAME.pattern
    assert {name: split for split, name in script.FOLDERS.items()} == entire.LAYOUT.folders
    assert script.TAKEN == schema.RESERVED_CONFIGS
    assert (script.MAX_FILE_BYTES, script.MAX_PIXELS) == (files.MAX_FILE_BYTES, images.MAX_PIXELS)
    for name in ("North America", "Amérique", "test", "7", "Łódź", "as", ""):
        assert script.continent_slug(name) == cameras.continent_slug(name)


def test_it_judges_every_damaged_image_as_packing_does(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "crop"
    seen = set()
    for kind in ("JPEG", "PNG"):
        whole = image_bytes(1, kind=kind)
        cuts = [whole[:stop] for stop in range(0, len(whole), 3)]
        flips = [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(0, min(len(whole), 700), 2)]
        for data in (whole, *cuts, *flips):
            path.write_bytes(data)
            expected = image_size(data)
            if isinstance(expected, images.Unusable):
                with pytest.raises(script.Refused, match=f"^{expected.reason}$"):
                    script.read_image(str(path))
                seen.add(str(expected.reason))
            else:
                assert script.read_image(str(path)) == (data, *expected)
    assert {"empty", "truncated", "corrupt", "not-an-image"} <= seen


def test_it_keeps_to_its_config_and_its_folder(script: ModuleType, crops: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config 'africa'; .* has default, test, asia, europe"):
        rows_of(script, crops, "africa")
    with pytest.raises(ValueError, match="is packed already"):
        rows_of(script, packed)
    with pytest.raises(ValueError, match="holds none of the folders"):
        rows_of(script, crops / "query")
    with pytest.raises(ValueError, match="data_dir is None"):
        script.EntireId()
    (crops / "cameras.csv").write_text("camid\n1\n")
    with pytest.raises(ValueError, match="needs the columns camid and continent, has camid"):
        rows_of(script, crops)
    (crops / "cameras.csv").write_text("camid,continent\n1,asia\n1,asia\n")
    with pytest.raises(ValueError, match="line 3: camid '1'"):
        rows_of(script, crops)


def test_a_changed_file_is_never_served_from_the_cache(
    script: ModuleType, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> int:
        builder = script.EntireId(data_dir="crops", cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        return len(builder.as_dataset("query"))

    monkeypatch.chdir(tmp_path)
    assert load() == 12
    (crops / "query" / "00000_c000s0_760487.jpg").unlink()
    assert load() == 11
    other = write_crops(tmp_path / "elsewhere" / "crops", crop_names(1))
    monkeypatch.chdir(other.parent)
    assert load() == 3


def test_processes_share_the_work(script: ModuleType, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "BLOCK_CROPS", 5)
    rows = script.EntireId(data_dir=str(crops)).as_streaming_dataset("gallery")
    assert rows.num_shards == 5
    shares = [{row["key"] for row in rows.shard(2, index)} for index in range(2)]
    assert sum(map(len, shares)) == len(shares[0] | shares[1]) == 24


def test_no_folder_of_the_project_holds_a_script_of_its_own_name() -> None:
    for folder in (ROOT / "loading_script", ROOT / "card", ROOT / "entire_id"):
        assert not (folder / f"{folder.name}.py").exists()
    assert PATH.stem not in {"entire-id", "entire_id"}
    assert records.CAMERAS_FILE == "cameras.csv"
