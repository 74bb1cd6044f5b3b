from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entire_id import show
from entire_id.errors import EvaluationError
from entire_id.loading.embed import embed
from entire_id.show import draw_people, draw_ranking

from builders import crop_names, pack_folder, write_crops


def has_colour(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == colour).all(-1).any())


def test_people_grid_has_a_row_for_each_person_and_a_column_for_each_camera(packed_any: Path) -> None:
    whole = draw_people(packed_any, "gallery")
    assert draw_people(packed_any, "gallery", num_people=2).height == whole.height // 2 + show._GAP // 2
    narrower = draw_people(packed_any, "gallery", num_cameras=1)
    assert whole.width - narrower.width == 2 * (show._CELL[0] + show._GAP)


def test_people_who_have_most_cameras_come_first(tmp_path: Path) -> None:
    names = ["bounding_box_test/00000_c000s0_1.jpg", *(f"bounding_box_test/00007_c00{n}s0_1.jpg" for n in range(3))]
    packed = pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    first, both = draw_people(packed, "gallery", num_people=1), draw_people(packed, "gallery", num_people=2)
    assert first.width == both.width
    assert np.array_equal(np.asarray(first), np.asarray(both)[: first.height])


def test_ranked_lists_frame_right_and_wrong(packed: Path, tmp_path: Path) -> None:
    features = embed(packed, ["query", "gallery"], "colour", tmp_path / "features")
    picture = draw_ranking(packed, features, num_queries=3, num_ranks=9)
    assert picture.width == show._CELL[0] + 10 * (show._CELL[0] + show._GAP) + show._GAP
    assert has_colour(picture, show._QUERY)
    assert has_colour(picture, show._WRONG)
    assert has_colour(picture, show._RIGHT)


def test_ranking_leaves_out_what_the_scores_leave_out(tmp_path: Path) -> None:
    """Beside one right crop the gallery holds the query's own camera, one junk crop and one other person."""
    names = [
        "bounding_box_test/00001_c001s0_1.jpg",
        "query/00001_c000s0_1.jpg",
        "bounding_box_test/00001_c000s0_2.jpg",
        "bounding_box_test/-1_c001s0_1.jpg",
        "bounding_box_test/00002_c001s0_1.jpg",
    ]
    packed = pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    features = embed(packed, ["query", "gallery"], "colour", tmp_path / "features")
    picture = draw_ranking(packed, features)
    assert has_colour(picture, show._WRONG)
    assert has_colour(picture, show._RIGHT)
    assert picture.width == show._CELL[0] + 3 * (show._CELL[0] + show._GAP) + show._GAP


def test_nothing_to_rank_is_an_error(tmp_path: Path) -> None:
    names = [name for name in crop_names(people=2) if ("query" in name) == ("/00000" in name)]
    packed = pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    features = embed(packed, ["query", "gallery"], "colour", tmp_path / "features")
    with pytest.raises(EvaluationError, match="no query identity is in the gallery"):
        draw_ranking(packed, features)


def test_split_of_junk_alone_is_an_error(tmp_path: Path) -> None:
    packed = pack_folder(write_crops(tmp_path / "crops", ["query/-1_c000s0_1.jpg"]), tmp_path / "entire-id")
    with pytest.raises(EvaluationError, match="nobody to draw"):
        draw_people(packed, "query")
