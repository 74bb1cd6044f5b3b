"""The columns, once: Arrow schema, Hugging Face features and the card's table all come from `COLUMNS`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

__all__ = [
    "COLUMNS",
    "RESERVED_CONFIGS",
    "Column",
    "arrow_schema",
    "columns_table",
    "is_continent",
    "meta_columns",
    "shard_columns",
    "tar_features",
    "yaml_features",
]

RESERVED_CONFIGS = frozenset({"default", "test", "meta"})
"""Config names that a continent must not take."""

_CONTINENT = re.compile(r"[a-z][a-z0-9_]*")


def is_continent(name: str) -> bool:
    """Tell whether `name` can be a continent, and so the name of a config.

    >>> is_continent("north_america"), is_continent("North America"), is_continent("test")
    (True, False, False)
    """
    return bool(_CONTINENT.fullmatch(name)) and name not in RESERVED_CONFIGS


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the format.

    Attributes:
        name: column name.
        dtype: `image`, or the name of a Hugging Face `Value` type.
        unit: physical unit, `""` where there is none.
        meaning: one sentence for the card.
        where: `shard` (image only), `both`, or `meta`.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    where: str = "both"


COLUMNS = (
    Column("image", "image", "", "the crop as published, never re-encoded; `path` is its file name", "shard"),
    Column("key", "string", "", "`<split>/<relative path without extension>`, unique; dots escaped as `%2E`"),
    Column("pid", "int32", "", "number of the identity, unique within a part; 0 is a person, -1 junk, -2 a distractor"),
    Column("camid", "int32", "", "camera number as the source prints it; 0 is a camera"),
    Column("continent", "string", "", "continent of the camera, `unknown` where the owner did not say"),
    Column("seq", "int32", "", "sequence number of the file name, -1 where there is none"),
    Column("frame", "int64", "", "frame number of the file name, -1 where there is none"),
    Column("width", "int32", "px", "width of the crop"),
    Column("height", "int32", "px", "height of the crop"),
    Column("xxh3", "string", "", "XXH3-64 of the image's bytes, 16 hexadecimal digits"),
    Column("shard", "string", "", "file that holds the crop, relative to the data set's folder", "meta"),
    Column("offset", "int64", "byte", "where the image's bytes start in the shard", "meta"),
    Column("length", "int32", "byte", "how many bytes the image has", "meta"),
)

_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ARROW_TYPES = {
    "image": _IMAGE_TYPE,
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
}


def shard_columns() -> tuple[Column, ...]:
    """Return the columns of a shard: pixels and labels."""
    return tuple(column for column in COLUMNS if column.where != "meta")


def meta_columns() -> tuple[Column, ...]:
    """Return the columns of a meta file: labels and where the bytes lie, no pixels."""
    return tuple(column for column in COLUMNS if column.where != "shard")


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """Return the Arrow schema of `columns`, with the `huggingface` metadata that restores `Image` features.

    Equal to `datasets.Features(...).arrow_schema` of the same columns, without importing datasets.
    """
    features = {
        column.name: {"_type": "Image"} if column.dtype == "image" else {"dtype": column.dtype, "_type": "Value"}
        for column in columns
    }
    fields = [pa.field(column.name, _ARROW_TYPES[column.dtype]) for column in columns]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def yaml_features(columns: tuple[Column, ...]) -> list[dict[str, Any]]:
    """Return `columns` as the `features` list of a README's `dataset_info`."""
    return [{"name": column.name, "dtype": column.dtype} for column in columns]


def tar_features() -> list[dict[str, Any]]:
    """Return the `features` list of the tar variant: `jpg`, `json`, and the two columns that readers add.

    Without it `datasets` infers the fields from the first five samples.
    """
    labels = [column for column in shard_columns() if column.dtype != "image"]
    fields = [{"name": "path", "dtype": "string"}, *yaml_features(tuple(labels))]
    return [
        {"name": "jpg", "dtype": "image"},
        {"name": "json", "struct": fields},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def columns_table(columns: tuple[Column, ...]) -> str:
    """Return a Markdown table of `columns`."""
    rows = [f"| `{column.name}` | {column.dtype} | {column.unit or '–'} | {column.meaning} |" for column in columns]
    return "\n".join(["| column | type | unit | meaning |", "|---|---|---|---|", *rows])
