"""How a worker hands a batch to the training loop: images in memory that both see, labels inside the message.

A `DataLoader` passes each tensor of a batch by a file descriptor, for which the loop's process opens a connection: half
a millisecond for a tensor of a few numbers, six times a batch. And it copies what does not lie in shared memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["SharedImages", "by_value"]

_KINDS = "buif"  # booleans and numbers, as numpy calls them: what a tensor can hold


class SharedImages:
    """Memory for the images of one batch, which reaches the loop's process without a copy."""

    def __init__(self) -> None:
        self._tensor: torch.Tensor | None = None

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array of any values, as `numpy.empty` does."""
        if dtype.kind not in _KINDS:
            return np.empty(shape, dtype)
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        # As torch's own collate function does it, from which there is no public way to shared memory without a copy.
        size = math.prod(shape) * dtype.itemsize
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call] # noqa: SLF001
        self._tensor = torch.empty(0, dtype=kind).set_(storage, 0, shape)  # type: ignore[call-overload]
        return self._tensor.numpy()

    def tensor(self, num_images: int) -> torch.Tensor | None:
        """Return the first images as a tensor in that memory; None where they are elsewhere."""
        return None if self._tensor is None else self._tensor[:num_images]


class _ByValue(torch.Tensor):
    """A small tensor on its way out of a worker: its numbers travel in the message, and a plain tensor arrives."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # noqa: SLF001

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        array = self.numpy()
        return _arrived, (array.tobytes(), array.dtype.str, array.shape)


def _arrived(data: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype).reshape(shape))


def by_value(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a small array as a tensor that leaves a worker inside the message."""
    return torch.from_numpy(array).as_subclass(_ByValue)
