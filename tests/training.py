"""A small training that may be killed at any moment and goes on from its last checkpoint; `test_resume.py` runs it.

It prints a line for each batch, and waits for a line from its input before the next one, so that it never runs away.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from entire_id import CropDataset, PKSampler, PKStream, StreamOptions

P, K, SEED, EPOCHS, EVERY = 4, 4, 7, 3, 4
HEIGHT, WIDTH = 40, 20


def transform(pixels: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    top, left = rng.integers(0, pixels.shape[0] - HEIGHT), rng.integers(0, pixels.shape[1] - WIDTH)
    cut = pixels[top : top + HEIGHT, left : left + WIDTH]
    cut = cut[:, ::-1] if rng.random() < 0.5 else cut
    noise = rng.normal(0, 0.05, cut.shape).astype(np.float32)
    return torch.from_numpy(cut.astype(np.float32) / 255 + noise)


def source_of(kind: str, folder: str, workers: int) -> tuple[Any, DataLoader[Any], int]:
    """Return what keeps the place in an epoch, the loader, and the number of classes."""
    if kind == "stream":
        options = StreamOptions(pool_rows=40, unit_groups=1, lanes=2)
        stream = PKStream(folder, "gallery", P, K, seed=SEED, transform=transform, options=options)
        return stream, DataLoader(stream, batch_size=None, num_workers=workers), len(stream.label_map)
    crops = CropDataset(folder, "gallery", transform=transform)
    sampler = PKSampler(crops.pids, P, K, camids=crops.camids, seed=SEED)
    return sampler, DataLoader(crops, batch_sampler=sampler, num_workers=workers), len(crops.label_map)


def digest(*tensors: torch.Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()[:16]


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def train(kind: str, folder: str, checkpoint: Path, workers: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    source, loader, num_classes = source_of(kind, folder, workers)
    model = torch.nn.Linear(HEIGHT * WIDTH * 3, num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        source.load_state_dict(state["place"])
        start = state["place"]["epoch"]
    for epoch in range(start, EPOCHS):
        source.set_epoch(epoch)
        for num_done, batch in enumerate(loader, 1):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch["image"].flatten(1)), batch["label"]).backward()
            optimizer.step()
            place = source.state_dict(num_done)
            say("batch", epoch, place["num_batches"], digest(batch["row"], batch["image"]))
            if num_done % EVERY == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "place": place}
                torch.save(state, checkpoint.with_suffix(".partial"))
                checkpoint.with_suffix(".partial").replace(checkpoint)
            sys.stdin.readline()
    say("weights", digest(*model.parameters()))


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
