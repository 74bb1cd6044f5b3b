"""Trainings that are killed and go on as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from entire_id.loading.dataset import CropDataset
from entire_id.loading.sampler import PKSampler

from builders import CAMERAS, crop_names, pack_folder, write_crops
from training import EPOCHS, K, P, transform

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores

PROGRAM = Path(__file__).parents[1] / "training.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 gallery crops of 12 people, no two alike, in several shards."""
    home = tmp_path_factory.mktemp("resume")
    crops = write_crops(home / "source", crop_names(people=12, cameras=(0, 1), shots=9))
    (crops / "cameras.csv").write_text(CAMERAS)
    return pack_folder(crops, home / "packed", shard_rows=40)


class Training:
    """A process that trains."""

    def __init__(self, kind: str, folder: Path, checkpoint: Path, workers: int) -> None:
        command = [sys.executable, str(PROGRAM), kind, str(folder), str(checkpoint), str(workers)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def until_killed(self, num_batches: int, more: int) -> list[str]:
        """Let it finish some batches and kill it, wherever it is among the `more` next ones; return their lines."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n" * (num_batches + more))
        self.process.stdin.flush()
        lines = [self.process.stdout.readline().strip() for _ in range(num_batches)]
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        self.process.stdin.close()
        self.process.stdout.close()
        return lines

    def to_the_end(self) -> list[str]:
        """Return all its lines."""
        out, _ = self.process.communicate("")
        assert self.process.returncode == 0
        return out.splitlines()


@pytest.fixture(scope="module", params=["map", "stream"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(kind: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a training prints that nobody kills."""
    return Training(kind, folder, tmp_path_factory.mktemp("whole") / "state.pt", 0).to_the_end()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_is_killed_ends_with_the_same_weights(
    kind: str, folder: Path, whole: list[str], tmp_path: Path, workers: int
) -> None:
    rng = random.Random(workers)
    expected = {tuple(line.split()[1:3]): line for line in whole[:-1]}
    assert len(expected) == len(whole) - 1 >= 10 * EPOCHS
    last = -1
    for _ in range(2):
        lines = Training(kind, folder, tmp_path / "state.pt", workers).until_killed(rng.randrange(5, 13), more=3)
        assert [expected[tuple(line.split()[1:3])] for line in lines] == lines
        first = whole.index(lines[0])
        assert first > last, "it went on from a checkpoint"
        last = first
    lines = Training(kind, folder, tmp_path / "state.pt", workers).to_the_end()
    assert lines == whole[whole.index(lines[0]) :]
    assert whole.index(lines[0]) > last


Shown = list[tuple[list[int], torch.Tensor]]


def batches(crops: CropDataset, sampler: PKSampler, workers: int, num: int | None = None) -> Shown:
    loader = iter(DataLoader(crops, batch_sampler=sampler, num_workers=workers))
    found = []
    for batch in loader:
        found.append((batch["row"].tolist(), batch["image"]))
        if len(found) == num:
            break
    return found


@pytest.mark.parametrize("seed", range(6))
def test_crops_go_on_after_any_batch_with_the_same_augmentations(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    world_size = rng.randrange(1, 5)
    rank, workers, later_workers = rng.randrange(world_size), rng.randrange(4), rng.randrange(4)
    crops = CropDataset(folder, "gallery", transform=transform)

    def sampler() -> PKSampler:
        return PKSampler(crops.pids, P, K, seed=seed, rank=rank, world_size=world_size)

    whole = batches(crops, sampler(), 0)
    first = sampler()
    num = rng.randrange(1, len(whole))
    done = batches(crops, first, workers, num)
    later = sampler()
    later.load_state_dict(first.state_dict(num))
    for (rows, images), (expected_rows, expected) in zip(
        done + batches(crops, later, later_workers), whole, strict=True
    ):
        assert rows == expected_rows
        assert torch.equal(images, expected)
