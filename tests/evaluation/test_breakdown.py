from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from entire_id.errors import EvaluationError
from entire_id.evaluation.breakdown import Interval, group_rows, resample_intervals


@given(
    st.one_of(
        arrays.arrays(np.int64, st.integers(1, 200)),
        arrays.arrays(np.float64, st.integers(1, 200), elements=st.floats(allow_nan=False, allow_infinity=False)),
        arrays.arrays(np.float64, st.integers(1, 200), elements=st.floats(1.7e9, 1.7e9 + 1e-3)),
    ),
    st.integers(1, 6),
)
def test_every_row_is_in_one_group_and_every_group_has_its_name(values: np.ndarray, num_bins: int) -> None:
    groups = group_rows(values, num_bins)
    assert len({name for name, _ in groups}) == len(groups)
    np.testing.assert_array_equal(np.sum([rows for _, rows in groups], axis=0), np.ones(len(values)))


def test_names_of_bins_hold_integers_in_full() -> None:
    """Seconds since 1970 agree in six digits, and frame numbers may have seven."""
    seconds = 1_760_487_000 + np.arange(100)
    assert [name for name, _ in group_rows(seconds, 2)] == ["1760487000–1760487049", "1760487050–1760487099"]
    assert [name for name, _ in group_rows(np.arange(1_234_567, 1_234_667), 1)] == ["1234567–1234666"]


def test_names_are_never_put_into_bins() -> None:
    groups = group_rows(np.arange(51).repeat(2), 4, are_names=True)
    assert [name for name, _ in groups] == [str(camid) for camid in range(51)]
    assert all(rows.sum() == 2 for _, rows in groups)


def test_no_bins_are_refused() -> None:
    with pytest.raises(EvaluationError, match="0 bins are none"):
        group_rows(np.arange(100), 0)


def test_one_person_has_no_interval() -> None:
    values = {"mAP": np.array([0.2, 0.9, np.nan])}
    (ends,) = resample_intervals(values, np.array([1.0, 1.0, 0.0]), np.array([7, 7, 8])).values()
    assert all(math.isnan(end) for end in ends)
    assert Interval(0.5, *ends).ends() == "–"
    assert Interval(0.5, 0.25, 0.75).ends("+") == "+25.00 to +75.00"
