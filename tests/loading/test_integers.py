from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from entire_id.loading.integers import count_values, order_of

numbers_far_apart = st.integers(-3, 9) | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(numbers_far_apart, max_size=40))
def test_values_are_counted_however_far_apart(numbers):
    values = np.array(numbers, np.int64)
    for found, expected in zip(count_values(values), np.unique(values, return_counts=True), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@given(st.lists(st.tuples(numbers_far_apart, numbers_far_apart), max_size=40))
def test_rows_are_ordered_as_by_lexsort_however_far_apart(rows):
    first, second = np.array(rows, np.int64).reshape(-1, 2).T
    np.testing.assert_array_equal(order_of(first, second), np.lexsort((second, first)))
