"""What passes between the plan, the writers and the index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Crops", "ShardWriter", "Spans"]


@dataclass(frozen=True, slots=True)
class Crops:
    """A row group to write.

    Attributes:
        images: n images as published.
        names: their n file names.
        labels: (n rows) every shard column but `image`, in the schema's order.
    """

    images: list[bytes]
    names: list[str]
    labels: pa.Table

    def __len__(self) -> int:
        return len(self.images)

    def image_column(self) -> pa.StructArray:
        """The images as the `image` column: struct<bytes, path>."""
        offsets = np.zeros(len(self) + 1, np.int32)
        np.cumsum([len(image) for image in self.images], out=offsets[1:])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(self.images))]  # much faster than pa.array
        images = pa.BinaryArray.from_buffers(pa.binary(), len(self), buffers)
        return pa.StructArray.from_arrays([images, pa.array(self.names, pa.string())], ["bytes", "path"])

    @property
    def num_bytes(self) -> int:
        """Size of the rows as an Arrow table, which is what `datasets` calls num_bytes."""
        texts = sum(len(name.encode()) for name in self.names) + sum(map(len, self.images))
        offsets = 2 * 4 * (len(self) + 1)
        return texts + offsets + int(self.labels.nbytes)


@dataclass(frozen=True, slots=True)
class Spans:
    """Where images lie in a file.

    Attributes:
        offset: (n,) first byte of each image.
        length: (n,) its size in bytes.
    """

    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int32]


class ShardWriter(Protocol):
    """Writes one shard file, a row group at a time."""

    def write(self, crops: Crops) -> None:
        """Append `crops` as one row group."""

    def close(self) -> Spans:
        """Finish the file and return where each image lies."""

    def abandon(self) -> None:
        """Release the file without finishing it."""
