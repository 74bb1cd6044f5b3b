"""Training by several processes, started as users start them: every crop once, and the batches of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import entire_id

from builders import ended_well, many_crops, pack_folder

pytest.importorskip("torch")

P, K, WORLD_SIZE = 4, 4, 2

SETUP = """
import json, sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import entire_id

P, K, NUM_WORKERS = 4, 4, 2
folder, out = (Path(argument) for argument in sys.argv[1:])
transform = entire_id.EvalTransform(8, 4)

def loaders():
    crops = entire_id.CropDataset(folder, "gallery", transform=transform)
    sampler = entire_id.PKSampler(crops.pids, P, K, camids=crops.camids, seqs=crops.seqs)
    options = entire_id.StreamOptions(lanes=4, pool_rows=200, unit_groups=1)
    stream = entire_id.PKStream(folder, "gallery", P, K, transform=transform, options=options)
    return {
        "sampler": DataLoader(crops, batch_sampler=sampler, num_workers=NUM_WORKERS),
        "stream": DataLoader(stream, batch_size=None, num_workers=NUM_WORKERS),
    }

def new_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 40))

def train(model, optimizer, backward, rank):
    rows = {}
    for name, loader in loaders().items():
        rows[name] = []
        for batch in loader:
            loss = torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
            rows[name].append([batch["row"].tolist(), batch["padded"].tolist() if "padded" in batch else None])
    weight = sum(parameter.abs().sum().item() for parameter in model.parameters())
    (out / f"{rank}.json").write_text(json.dumps(rows | {"weight": weight}))
"""

TORCHRUN = """
torch.distributed.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(new_model())
train(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.Tensor.backward, torch.distributed.get_rank())
torch.distributed.destroy_process_group()
"""

ACCELERATE = """
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
model = new_model()
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
train(model, optimizer, accelerator.backward, accelerator.process_index)
accelerator.end_training()
"""

MULTI = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]  # needs no GPU
LAUNCHERS = {
    "torchrun": (TORCHRUN, ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    "accelerate": (ACCELERATE, ["accelerate.commands.launch", *MULTI]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 gallery crops of 40 people in five shards."""
    home = tmp_path_factory.mktemp("launchers")
    return pack_folder(many_crops(home / "source", people=40, shots=30), home / "packed", shard_rows=300)


@pytest.fixture(scope="module", params=LAUNCHERS)
def ranks(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes showed in an epoch, each with two workers."""
    if request.param == "accelerate":
        pytest.importorskip("accelerate")
    script, command = LAUNCHERS[request.param]
    out = tmp_path_factory.mktemp(request.param)
    (out / "train.py").write_text(SETUP + script)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", *command, str(out / "train.py"), str(folder), str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert ended_well(done), done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


def in_turns(ranks: list[Any], name: str) -> list[Any]:
    """All batches: that of rank 0, that of rank 1, and so on."""
    batches = [rank[name] for rank in ranks]
    assert len({len(one) for one in batches}) == 1, "ranks take the same number of steps"
    return list(chain.from_iterable(zip(*batches, strict=True)))


def shown(batches: list[Any]) -> list[int]:
    """Rows that count: those that are no padding."""
    return sorted(row for batch in batches for row, padded in zip(*batch, strict=True) if not padded)


def test_ranks_agree_on_the_weights(ranks: list[Any]) -> None:
    assert ranks[0]["weight"] == ranks[1]["weight"]


def test_a_sampler_shows_every_crop_and_the_batches_of_one_process(ranks: list[Any], folder: Path) -> None:
    crops = entire_id.CropDataset(folder, "gallery")
    whole = list(entire_id.PKSampler(crops.pids, P, K, camids=crops.camids, seqs=crops.seqs, rank=0, world_size=1))
    batches = [rows for rows, _ in in_turns(ranks, "sampler")]
    num_whole = len(batches) - 2 * WORLD_SIZE  # the last one or two steps are shared evenly
    assert batches[:num_whole] == whole[:num_whole]
    assert sorted(chain(*batches)) == sorted(chain(*whole))
    assert set(chain(*batches)) == set(range(1200))


def test_a_stream_shows_every_crop_once_and_the_batches_of_one_process(ranks: list[Any], folder: Path) -> None:
    options = entire_id.StreamOptions(lanes=4, pool_rows=200, unit_groups=1)
    stream = entire_id.PKStream(folder, "gallery", P, K, decode=False, options=options, rank=0, world_size=1)
    batches = in_turns(ranks, "stream")
    assert batches == [[batch["row"].tolist(), batch["padded"].tolist()] for batch in stream]
    assert shown(batches) == list(range(1200))
