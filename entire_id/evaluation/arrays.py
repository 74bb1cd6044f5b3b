"""What is taken for an array: numpy's, and torch's without importing torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FloatArray", "Integers", "Tensor", "is_tensor", "to_numpy"]

FloatArray = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

Tensor = Any
"""A torch tensor, or a numpy array: torch is imported only where tensors are given."""


def is_tensor(values: object) -> bool:
    """Tell whether `values` is a torch tensor, without importing torch.

    >>> is_tensor(np.zeros(3))
    False
    """
    return any(kind.__module__.partition(".")[0] == "torch" for kind in type(values).__mro__)


def to_numpy(values: Any) -> npt.NDArray[Any]:  # noqa: ANN401 whatever numpy takes, or a tensor
    """Return `values` as a numpy array; a tensor leaves its device."""
    if is_tensor(values):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # unknown to numpy
            values = values.float()
    return np.asarray(values)
