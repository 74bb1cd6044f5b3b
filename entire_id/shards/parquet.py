"""Parquet shards: ordinary Parquet for every reader, with the image bytes lying plain in the file."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from entire_id.errors import ManifestError
from entire_id.schema import arrow_schema, shard_columns
from entire_id.shards.records import Crops, Spans

__all__ = ["ParquetShard", "image_spans", "read_crops", "read_names", "write_meta"]

_IMAGE_LEAF = "image.bytes"
_IMAGE_LEAVES = (_IMAGE_LEAF, "image.path")
_DATA_PAGE = 0
Bytes = bytes | mmap.mmap
_UINT32 = struct.Struct("<I").unpack_from


class ParquetShard:
    """Writes one shard, a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schema = arrow_schema(shard_columns())
        labels = [field.name for field in self._schema if field.name != "image"]
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression=dict.fromkeys(_IMAGE_LEAVES, "none") | dict.fromkeys(labels, "snappy"),
            use_dictionary=labels,
            write_statistics=labels,
            write_page_index=True,
            # No content-defined chunking, and so one page of images a row group: when a person goes, Xet sends 9 MB,
            # and 20 MB with it (benchmarks/RESULTS.md, "Row order"). It finds plain image bytes in any page; the more
            # pages there are, the more of their headers change.
        )

    def write(self, crops: Crops) -> None:
        """Append `crops` as one row group."""
        arrays = [crops.image_column(), *crops.labels.columns]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(table))

    def close(self) -> Spans:
        """Finish the file and return where each image lies."""
        self._writer.close()
        return image_spans(self._path)

    def abandon(self) -> None:
        """Release the file without finishing it."""
        self._writer.close()


def write_meta(path: Path, table: pa.Table) -> None:
    """Write a meta file: one row group, whatever its size, for a meta file is read whole."""
    with pq.ParquetWriter(path, table.schema, compression="snappy") as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))


def read_crops(path: Path) -> Iterator[tuple[list[bytes], list[str], pa.Table]]:
    """Yield (image bytes, file names, labels) of each row group."""
    with pq.ParquetFile(path) as shard:
        for group in range(shard.num_row_groups):
            table = shard.read_row_group(group, use_threads=False)
            image = table["image"].combine_chunks()
            yield image.field("bytes").to_pylist(), image.field("path").to_pylist(), table.drop_columns("image")


def read_names(path: Path) -> list[str]:
    """Return the file names of a shard's images, without reading their bytes."""
    with pq.ParquetFile(path) as shard:
        names: list[str] = shard.read(columns=["image.path"])["image"].combine_chunks().field("path").to_pylist()
    return names


def image_spans(path: Path) -> Spans:
    """Return where the bytes of every image lie, from the page headers of the `image.bytes` column.

    A PLAIN, uncompressed BYTE_ARRAY page holds, after its definition levels, a little-endian uint32 length and that
    many bytes for every value (Apache Parquet format, "Encodings" and "Data Pages").

    Raises:
        ManifestError: the column is missing, compressed or encoded in another way, as in no shard of ours.
    """
    offsets: list[int] = []
    lengths: list[int] = []
    with pq.ParquetFile(path) as shard, path.open("rb") as file:
        for group in range(shard.num_row_groups):
            column = _image_chunk(path, shard.metadata.row_group(group))
            try:
                spans = _group_spans(file, column)
            except (IndexError, struct.error) as error:
                raise ManifestError(
                    path, f"row group {group}: an image is null, or a page is damaged ({error})"
                ) from error
            except ValueError as error:
                raise ManifestError(path, f"row group {group}: cannot follow the images ({error})") from error
            offsets += [offset for offset, _ in spans]
            lengths += [length for _, length in spans]
    return Spans(np.array(offsets, np.int64), np.array(lengths, np.int32))


def _image_chunk(path: Path, row_group: pq.RowGroupMetaData) -> pq.ColumnChunkMetaData:
    """Return the image bytes' column chunk, if it is written as ours are."""
    chunks = (row_group.column(number) for number in range(row_group.num_columns))
    column = next((chunk for chunk in chunks if chunk.path_in_schema == _IMAGE_LEAF), None)
    if column is None:
        raise ManifestError(path, f"no column {_IMAGE_LEAF}")
    if column.compression != "UNCOMPRESSED" or not {"PLAIN", "RLE"}.issuperset(column.encodings):
        how = f"{column.compression}, {'/'.join(column.encodings)}"
        raise ManifestError(path, f"image bytes do not lie plain in it ({how}); another tool rewrote it")
    return column


def _group_spans(file: BinaryIO, column: pq.ColumnChunkMetaData) -> list[tuple[int, int]]:
    start = column.data_page_offset
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    stop = start + column.total_compressed_size
    # Mapped, not read: of a page no more than its header and the images' lengths are looked at.
    with mmap.mmap(file.fileno(), stop - first, access=mmap.ACCESS_READ, offset=first) as chunk:
        return [(first + offset, length) for offset, length in _chunk_spans(chunk, start - first, column.num_values)]


def _chunk_spans(chunk: Bytes, position: int, num_values: int) -> Iterator[tuple[int, int]]:
    seen = 0
    while seen < num_values:
        header = _read_page_header(chunk, position)
        if header.page_type != _DATA_PAGE:
            raise ValueError(f"page type {header.page_type}, expected a v1 data page")
        # v1 pages: uint32 length of the run-length encoded definition levels, then the levels, then the values.
        position = header.stop + 4 + _UINT32(chunk, header.stop)[0]
        for _ in range(header.num_values):
            (length,) = _UINT32(chunk, position)
            yield position + 4, length
            position += 4 + length
        seen += header.num_values
        if position != header.stop + header.size:
            raise ValueError("values do not fill their page; is an image null?")


class _PageHeader:
    """The fields of a Thrift `PageHeader` that lead to the values."""

    __slots__ = ("num_values", "page_type", "size", "stop")

    def __init__(self, page_type: int, size: int, num_values: int, stop: int) -> None:
        self.page_type = page_type
        self.size = size
        self.num_values = num_values
        self.stop = stop


def _read_page_header(data: Bytes, position: int) -> _PageHeader:
    """Parse a PageHeader (parquet.thrift): 1 type, 2 uncompressed size, 5 data_page_header {1 num_values}."""
    fields, stop = _read_struct(data, position)
    inner = fields.get(5)
    num_values = inner.get(1, 0) if isinstance(inner, dict) else 0
    page_type, size = fields.get(1), fields.get(2)
    if not (isinstance(page_type, int) and isinstance(size, int) and isinstance(num_values, int)):
        raise ValueError(f"no page header at byte {position}")  # noqa: TRY004 the bytes are wrong, not a type
    return _PageHeader(page_type, size, num_values, stop)


def _read_varint(data: Bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


ThriftStruct = dict[int, "int | bytes | ThriftStruct"]


def _read_struct(data: Bytes, position: int) -> tuple[ThriftStruct, int]:
    """Read a struct of the Thrift compact protocol: integers, booleans, binary and nested structs."""
    fields: ThriftStruct = {}
    field_id = 0
    while (byte := data[position]) != 0:
        position += 1
        delta, kind = byte >> 4, byte & 0x0F
        if delta:
            field_id += delta
        else:
            number, position = _read_varint(data, position)
            field_id = (number >> 1) ^ -(number & 1)
        fields[field_id], position = _read_value(data, position, kind)
    return fields, position + 1


def _read_value(data: Bytes, position: int, kind: int) -> tuple[int | bytes | ThriftStruct, int]:
    # Compact protocol types: 1/2 true/false, 3 byte, 4/5/6 zigzag integers, 8 binary, 12 struct.
    match kind:
        case 1 | 2:
            return 2 - kind, position
        case 3:
            return data[position], position + 1
        case 4 | 5 | 6:
            number, position = _read_varint(data, position)
            return (number >> 1) ^ -(number & 1), position
        case 8:
            length, position = _read_varint(data, position)
            return data[position : position + length], position + length
        case 12:
            return _read_struct(data, position)
        case _:
            raise ValueError(f"unexpected Thrift type {kind} in a page header")
