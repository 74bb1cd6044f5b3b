"""The columns: Arrow, Hugging Face and YAML say the same, and tables keep their features on the way to disk."""

from __future__ import annotations

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entire_id.schema import (
    COLUMNS,
    RESERVED_CONFIGS,
    arrow_schema,
    columns_table,
    meta_columns,
    shard_columns,
    tar_features,
    yaml_features,
)

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
IMAGE = st.fixed_dictionaries({"bytes": st.binary(max_size=40), "path": TEXT})
VALUES = {"image": IMAGE, "string": TEXT, "int32": INT32, "int64": INT64}
BOTH = pytest.mark.parametrize("columns", [shard_columns(), meta_columns()], ids=["shard", "meta"])


def features_of(columns):
    return datasets.Features(
        {c.name: datasets.Image() if c.dtype == "image" else datasets.Value(c.dtype) for c in columns}
    )


@BOTH
def test_the_arrow_schema_is_the_one_that_datasets_makes_metadata_included(columns):
    assert arrow_schema(columns).equals(features_of(columns).arrow_schema, check_metadata=True)


@BOTH
def test_the_yaml_features_are_those_that_datasets_reads_back(columns):
    assert datasets.Features._from_yaml_list(yaml_features(columns)) == features_of(columns)


def test_the_tar_features_decode_the_image_and_name_every_label():
    features = datasets.Features._from_yaml_list(tar_features())
    assert features["jpg"] == datasets.Image()
    labels = {c.name: datasets.Value(c.dtype) for c in shard_columns() if c.name != "image"}
    assert dict(features["json"]) == {"path": datasets.Value("string"), **labels}
    assert list(features) == ["jpg", "json", "__key__", "__url__"]


@BOTH
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_table_keeps_values_and_features_through_parquet(columns, data, tmp_path):
    row = st.fixed_dictionaries({column.name: VALUES[column.dtype] for column in columns})
    rows = data.draw(st.lists(row, max_size=4))
    path = tmp_path / "table.parquet"
    pq.write_table(pa.Table.from_pylist(rows, arrow_schema(columns)), path)
    table = pq.read_table(path)
    assert table.to_pylist() == rows
    assert datasets.Features.from_arrow_schema(table.schema) == features_of(columns)


def test_a_shard_is_labels_and_pixels_and_meta_is_labels_and_place():
    shard, meta = ({column.name for column in columns} for columns in (shard_columns(), meta_columns()))
    assert shard - meta == {"image"}
    assert meta - shard == {"shard", "offset", "length"}


def test_no_type_breaks_the_default_collate_or_old_readers():
    assert {column.dtype for column in COLUMNS} == {"image", "string", "int32", "int64"}  # no list, no unsigned
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)


def test_frame_is_wide_enough_for_years_of_video():
    assert {column.name: column.dtype for column in COLUMNS}["frame"] == "int64"


def test_the_card_table_has_a_line_for_every_column_and_as_many_cells():
    lines = columns_table(COLUMNS).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == [column.name for column in COLUMNS]
    assert {line.count("|") for line in lines} == {5}


def test_the_reserved_configs_are_the_ones_that_are_always_there():
    assert {"default", "test", "meta"} == RESERVED_CONFIGS
