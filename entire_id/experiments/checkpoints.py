"""Where a training stands: one file, complete or not there, from which it goes on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from entire_id.errors import TrainingError
from entire_id.staging import sync

__all__ = ["Checkpoint", "read_checkpoint", "read_step", "write_checkpoint"]

_FACTS = "entire_id"  # under which the file holds what is no tensor
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training stands after a step.

    There are no states of random generators: those of a step follow from the seed, the step and the rank, those of a
    crop from the seed, the epoch and its place. Nor of the schedule, which follows from the step.

    Attributes:
        step: steps that are done.
        loading: `state_dict` of the sampler or stream.
        scaler: state of the scaler of half precision, of plain values; empty where there is none.
        tensors: network, moving average and momentum, by name, each group with its own prefix.
    """

    step: int
    loading: Mapping[str, Any]
    scaler: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors of a group by their names in it."""
        start = f"{prefix}/"
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it to a file, which is replaced at once, after the bytes are on the disk."""
    facts = {
        "version": _VERSION,
        "step": checkpoint.step,
        "loading": checkpoint.loading,
        "scaler": checkpoint.scaler,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, {_FACTS: json.dumps(facts)})
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return what was written last; None where nothing was.

    Raises:
        TrainingError: the file is damaged, or of another version of the package.
    """
    if not path.is_file():
        return None
    with _opened(path) as (file, facts):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
        return Checkpoint(facts["step"], facts["loading"], facts["scaler"], tensors)


def read_step(path: Path) -> int:
    """Return how many steps were done when it was written last, 0 where nothing was; no tensor is read.

    Raises:
        TrainingError: see `read_checkpoint`.
    """
    if not path.is_file():
        return 0
    with _opened(path) as (_, facts):
        return int(facts["step"])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give the open file, and what it holds besides tensors."""
    cure = "Move it away to begin anew"
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            if facts["version"] != _VERSION:
                what = f"it is of version {facts['version']}, this package reads {_VERSION}"
                raise TrainingError(path, f"{what}. {cure}")
            yield file, facts
    except TrainingError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(path, f"it is damaged ({error}). {cure}") from error
