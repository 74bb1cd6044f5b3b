"""Small data sets for the tests: real JPEG and PNG files with the official names, drawn as plain colours."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

# Before anything imports datasets or huggingface_hub: nothing of the user's is read or written, no network is asked.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="entire-id-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

from entire_id.shards.pack import PackConfig, pack
from entire_id.sources.layouts import open_source

from builders import CAMERAS, crop_names, pack_folder, write_crops
from cousins import draw_crops, small_tree, write_tree

collect_ignore = ["datasets3", "pythons", "s3"]  # programs of their own environments

# Started in the background a process ignores Ctrl-C, and so would those that it starts: the tests send it.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A loaded machine is no failure of the code.
settings.register_profile("entire-id", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("entire-id")

REAL_CROPS = Path(__file__).parents[2] / "shared" / "real" / "crops"


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A test part in the official layout: 4 people, cameras 0, 1 and 21 on two continents, 12 query, 24 gallery."""
    folder = write_crops(tmp_path / "crops", crop_names())
    (folder / "cameras.csv").write_text(CAMERAS)
    return folder


@pytest.fixture
def packed(crops: Path, tmp_path: Path) -> Path:
    """`crops`, packed as Parquet."""
    return pack_folder(crops, tmp_path / "entire-id")


@pytest.fixture(params=["parquet", "webdataset"])
def packed_any(request: pytest.FixtureRequest, crops: Path, tmp_path: Path) -> Path:
    """`crops`, packed in either format."""
    return pack_folder(crops, tmp_path / "entire-id", format=request.param)


@pytest.fixture(scope="session")
def msmt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MSMT17: 12 train and 6 val crops of 3 people, with a shard for each of these in either split, and a test part."""
    home = tmp_path_factory.mktemp("msmt")
    tree = write_tree(home / "crops", draw_crops(small_tree("msmt17-v1")))
    pack(open_source(tree, "msmt17-v1"), home / "msmt17", PackConfig(shard_rows=2))
    return home / "msmt17"


@pytest.fixture
def real_crops() -> Path:
    """Real photographs in the official layout, where they are at hand."""
    if not REAL_CROPS.is_dir():
        pytest.skip("no real crops beside the project")
    return REAL_CROPS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where one may be mounted; `resize_disk` gives it another size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system can be mounted here ({error})")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(autouse=True)
def _no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop `datasets` from sleeping five seconds after an interleaved stream."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
