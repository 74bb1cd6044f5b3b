"""What is taken for an array: numpy's, and torch's without importing torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FLOATS_OF_NUMPY",
    "BoolArray",
    "Float32Array",
    "Float64Array",
    "FloatArray",
    "Int32Array",
    "Int64Array",
    "Tensor",
    "is_tensor",
    "to_numpy",
]

FloatArray = npt.NDArray[np.floating[Any]]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Tensor = Any
"""A torch tensor, or a numpy array: torch is imported only where tensors are given."""

FLOATS_OF_NUMPY = {"torch.float16", "torch.float32", "torch.float64"}
"""Types of tensors that numpy has, too: it knows no bfloat16, and no float of 8 bits."""


def is_tensor(values: object) -> bool:
    """Tell whether `values` is a torch tensor, without importing torch.

    >>> is_tensor(np.zeros(3))
    False
    """
    return any(kind.__module__.partition(".")[0] == "torch" for kind in type(values).__mro__)


def to_numpy(values: Any) -> npt.NDArray[Any]:  # noqa: ANN401 whatever numpy takes, or a tensor
    """Return `values` as a numpy array; a tensor leaves its device, and floats that numpy lacks become float32."""
    if is_tensor(values):
        values = values.detach().cpu()
        if values.dtype.is_floating_point and str(values.dtype) not in FLOATS_OF_NUMPY:
            values = values.float()
    return np.asarray(values)
