from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from entire_id.errors import FeaturesError, OutputExistsError
from entire_id.evaluation.camera_pairs import MAX_CAMERAS
from entire_id.loading.embed import embed
from entire_id.report import check_report, collect_report, render_report, scored_model, write_report
from entire_id.score import ScoringConfig, rank_features, read_query_gallery, score_features, score_with_camera_pairs
from entire_id.show import frame_crop

from builders import CAMERAS, crop_names, image_bytes, pack_folder, write_crops

HOSTILE = "<script>alert(1)<b onload='x'>\"&amp;"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a page holds; tags must be closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def images(self) -> list[tuple[str, Image.Image]]:
        """Alternative text and pixels."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, data = attributes["src"].partition(";base64,")
                image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
                image.load()
                assert kind == f"data:image/{image.format.lower()}"
                found.append((attributes["alt"], image))
        return found


def spoiled(features: Path, out: Path) -> Path:
    """Copy features, some of another crop."""
    shutil.copytree(features, out)
    values = np.load(out / "gallery.npy")
    np.save(out / "gallery.npy", values[np.random.default_rng(0).permutation(len(values))])
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a data set and the features of two models."""
    folder = tmp_path_factory.mktemp("report")
    write_crops(folder / "crops", [*crop_names(), "query/00099_c000s0_1.jpg"])
    (folder / "crops" / "cameras.csv").write_text(CAMERAS)
    packed = pack_folder(folder / "crops", folder / "entire-id")
    spoiled(embed(packed, ["query", "gallery"], "colour", folder / "first"), folder / "second")
    return folder


def report_of(folder: Path, *features: str, **options):
    models = []
    for name in features:
        crops = read_query_gallery(folder / "entire-id", folder / name)
        models.append(scored_model(folder / name, *score_with_camera_pairs(crops, ScoringConfig(**options))))
    return collect_report(folder / "entire-id", models)


@pytest.fixture(scope="module")
def report(made):
    return report_of(made, "first", "second")


@pytest.fixture(scope="module")
def html(report) -> str:
    return render_report(report)


def test_page_says_what_was_scored_and_how(report, html) -> None:
    page = Page(html)
    scores = report.models[0].scores
    assert "This page contains crops of people; do not publish it." in page.text
    assert f"sha256:{report.content_sha256}" in page.text
    assert "entire-id, version 1.0.0" in page.text
    assert "market1501 (Zheng et al." in page.text
    assert "12 queries against 24 gallery crops, 1 queries skipped (1 not in the gallery)" in page.text
    assert f"{100 * scores.mAP:.2f}" in page.text
    assert f"R-precision {100 * scores.r_precision():.2f} %" in page.text
    low, high = scores.intervals()["mAP"].low, scores.intervals()["mAP"].high
    assert f"{100 * low:.2f} to {100 * high:.2f}" in page.text
    assert "Warning (colour (first)): the gallery has 24 crops, fewer than 50 ranks" in page.text
    for part in ("Queries by camera", "Queries by continent", "europe", "Best queries", "Worst", "Random"):
        assert part in page.text


def test_two_models_are_compared(report, html) -> None:
    page = Page(html)
    assert report.difference.differences["mAP"].value < 0
    assert f"{100 * report.difference.differences['mAP'].value:+.2f}" in page.text
    assert f"colour (second) against colour (first): {report.difference.summary()}." in page.text
    assert "difference" not in Page(render_report(report_of(report.models[0].features.parent, "first"))).text


def test_every_image_decodes_and_has_words(report, html) -> None:
    images = Page(html).images()
    assert all(alt for alt, _ in images)
    cmc, precision, pairs, *crops = images
    assert cmc[0].startswith(f"CMC curve. colour (first): {100 * report.models[0].scores.cmc[0]:.1f} % at rank 1")
    assert precision[0] == "Histogram of the average precision of 12 queries."
    assert pairs[0].startswith("Heat map of the mAP of 6 pairs of cameras. The lowest is")
    assert len(crops) == 3 * 4 * 11
    cell = report.ranked["best"][0].cells[1]
    difference = np.asarray(crops[1][1].convert("RGB")).astype(int) - np.asarray(frame_crop(cell))
    assert np.abs(difference).mean() < 6


def test_page_asks_no_network(html) -> None:
    links = [
        value for _, attributes in Page(html).tags for name, value in attributes.items() if name in {"src", "href"}
    ]
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert not re.search(r"(?:src|href|url|@import)[^>]{0,9}https?:|<script|<link|url\(", html)
    assert "default-src 'none'" in html


def test_same_input_gives_the_same_bytes_in_any_process(made, html, tmp_path) -> None:
    out = tmp_path / "sub" / "report.html"
    options = ["--features", made / "first", "--compare", made / "second", "--report", out, "--json"]
    command = [sys.executable, "-m", "entire_id", "evaluate", made / "entire-id", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["num_query"] == 13
    assert f"wrote {out}; it contains crops of people: do not publish it" in done.stderr
    assert out.read_text() == html
    assert out.stat().st_mode & 0o077 == 0
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_ranked_lists_leave_out_what_the_scores_leave_out(tmp_path) -> None:
    """Beside one right crop the gallery holds the query's own camera, one junk crop and one other person."""
    names = ["query/00001_c000s0_1.jpg", *(f"bounding_box_test/{name}.jpg" for name in (
        "00001_c001s0_1", "00001_c000s0_2", "-1_c001s0_1", "00002_c001s0_1"))]  # fmt: skip
    pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    features = embed(tmp_path / "entire-id", ["query", "gallery"], "colour", tmp_path / "features")
    keys = np.load(features / "gallery.keys.npy").tolist()
    query = np.load(features / "query.npy")
    values = np.repeat(query, len(keys), axis=0)  # what is ignored is most alike, then the other person
    values[:, 0] += [{"00001_c001": 9, "00002_c001": 1}.get(key.split("/")[-1][:10], 0) for key in keys]
    np.save(features / "gallery.npy", values)
    page = Page(render_report(report_of(tmp_path, "features")))
    alts = [alt for alt, _ in page.images()[3:]]
    wrong, right = "rank 1, wrong: gallery/00002_c001s0_1", "rank 2, right: gallery/00001_c001s0_1"
    assert alts[0].startswith("query of test/1: query/00001_c000s0_1")
    assert [alt.replace("bounding_box_test", "gallery") for alt in alts[1:3]] == [wrong, right]
    assert len(alts) == 3 * 3
    assert "✗ 1" in page.text
    assert "✓ 2" in page.text
    assert "AP 50.0 %" in page.text


def test_names_are_never_markup(tmp_path) -> None:
    crops = tmp_path / "crops"
    crops.mkdir()
    rows = [("query", 1, 0), ("gallery", 1, 1), ("gallery", 2, 1)]
    with (tmp_path / "crops" / "crops.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "pid", "camid", "split"])
        for number, (split, pid, camid) in enumerate(rows):
            name = f"{number}{HOSTILE}.jpg"
            (crops / name).write_bytes(image_bytes(number))
            writer.writerow([name, pid, camid, split])
    packed = pack_folder(crops / "crops.csv", tmp_path / "entire-id")
    features = embed(packed, ["query", "gallery"], "colour", tmp_path / "features")
    facts = json.loads((features / "features.json").read_text())
    (features / "features.json").write_text(json.dumps(facts | {"model": f"_$^{{{HOSTILE}\0\ud800"}))
    text = render_report(report_of(tmp_path, "features"))
    page = Page(text)
    text.encode()
    assert "\0" not in text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b onload"})
    assert all(set(attributes) <= {"class"} for tag, attributes in page.tags if tag == "b")
    assert HOSTILE in page.text
    assert any(HOSTILE in alt for alt, _ in page.images()[3:])


@pytest.mark.parametrize("protocol", ["single_gallery_shot", "multi_query", "all_cameras"])
def test_other_protocols_have_their_page(made, protocol) -> None:
    report = report_of(made, "first", protocol=protocol)
    page = Page(render_report(report))
    assert protocol in page.text
    assert (report.models[0].camera_pairs is None) == (protocol != "all_cameras")
    assert ("There are no scores by camera pair, for protocol" in page.text) == (protocol != "all_cameras")
    assert "first is shown" in page.text or protocol != "multi_query"
    scores = report.models[0].scores
    for row in report.ranked["worst"]:
        assert row.cells[0].person != "test/99"
        rights = [cell.person == row.cells[0].person for cell in row.cells[1:]]
        assert rights == row.ranking.is_right.tolist()
    assert rank_features(read_query_gallery(made / "entire-id", made / "first"), scores, []) == []


def test_hundreds_of_cameras_make_no_tables_and_a_sentence(tmp_path) -> None:
    number = MAX_CAMERAS + 1
    names = [f"query/{pid:05d}_c{pid:03d}s0_1.jpg" for pid in range(number)]
    names += ["bounding_box_test/00000_c999s0_1.jpg", "bounding_box_test/00001_c999s0_1.jpg"]
    pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    embed(tmp_path / "entire-id", ["query", "gallery"], "colour", tmp_path / "features")
    page = Page(render_report(report_of(tmp_path, "features")))
    assert "There are no scores by camera, for the queries have 201." in page.text
    assert "There are no scores by camera pair, for the queries have 201 cameras and the gallery 1;" in page.text
    assert "Queries by camera" not in page.text
    assert "Queries by continent" in page.text


def test_models_of_other_ranks_share_a_table(made) -> None:
    short, long = (
        scored_model(
            made / "first", score_features(made / "entire-id", made / "first", ScoringConfig(max_rank=max_rank))
        )
        for max_rank in (3, 50)
    )
    page = Page(render_report(collect_report(made / "entire-id", [short, long])))
    assert f"Rank-5 – – {100 * long.scores.rank(5):.2f}" in page.text


def test_only_a_report_is_replaced(made, report, tmp_path) -> None:
    out = tmp_path / "report.html"
    write_report(report, out)
    write_report(report, out)
    mine = tmp_path / "mine.html"
    mine.write_text("<!DOCTYPE html>\n<p>mine")
    for path in (mine, tmp_path):
        with pytest.raises(OutputExistsError):
            write_report(report, path)
        with pytest.raises(OutputExistsError):
            check_report(made / "entire-id", path)
    assert mine.read_text() == "<!DOCTYPE html>\n<p>mine"
    with pytest.raises(OutputExistsError, match="inside the data set"):
        check_report(made / "entire-id", made / "entire-id" / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "report.html"]


def test_features_without_a_model_have_no_name(tmp_path, report) -> None:
    with pytest.raises(FeaturesError, match="which model"):
        scored_model(tmp_path, report.models[0].scores)


def test_missing_matplotlib_is_said_before_anything_is_scored(made, tmp_path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from entire_id.cli.main import main; main()"
    options = ["--features", tmp_path / "none", "--report", tmp_path / "report.html"]
    command = [sys.executable, "-c", code, "evaluate", made / "entire-id", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "matplotlib is not installed" in done.stderr
    assert "pip install 'entire-id[plots]'" in done.stderr
    assert not (tmp_path / "report.html").exists()
