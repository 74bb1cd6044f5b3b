"""Every experiment from packed sets to table and plots, twice, and after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from entire_id.cli.main import app
from entire_id.errors import ExperimentError, OutputExistsError
from entire_id.loading.dataset import CropDataset
from entire_id.sources.sample import SampleConfig, draw_sample

from builders import pack_folder

torch = pytest.importorskip("torch")
for package in ("transformers", "accelerate", "tensorboard", "matplotlib"):
    pytest.importorskip(package)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores

STEPS = 2
TOY = f"--network tiny --steps {STEPS} --device cpu --workers 0 --set size=32x16 p=2 k=2".split()
SAMPLE = {"num_people": 8, "num_distractors": 2, "num_train_people": 12, "crops_per_person": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packed sets, `one` and `two`, of other drawn people, with train parts and four continents."""
    home = tmp_path_factory.mktemp("experiments")
    for seed, name in enumerate(("one", "two")):
        draw_sample(home / f"{name}-crops", SampleConfig(**SAMPLE, seed=seed))
        pack_folder(home / f"{name}-crops", home / name)
    return home


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def run(name: str, out: Path, *options: str) -> dict[str, Any]:
    """Run an experiment by its command and return its table."""
    arguments = ["experiment", name, "--out", str(out), *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == (out / "table.md").read_text().strip()
    return json.loads((out / "table.json").read_text())


def tables(found: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [table["rows"] for table in found["tables"]]


def outputs(out: Path) -> dict[str, bytes]:
    """All that must be the same of two runs."""
    kinds = [*out.glob("table.*"), *out.glob("*.png"), *out.glob("scores/*/*.json"), *out.glob("features/*/*/*.npy")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in kinds}


# --- cross-domain -----------------------------------------------------------------------------------------------------

CROSS = ["--train", "one", "two", "--joined", "--model", "colour", "--test", "one", "two", *TOY]


@pytest.fixture(scope="module")
def crossed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crossed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run("cross-domain", out, *CROSS)
    return out


def test_cross_domain_gives_a_row_for_every_candidate(crossed: Path) -> None:
    maps, ranks, spreads, sets = tables(json.loads((crossed / "table.json").read_text()))
    names = ["one", "two", "one + two", "colour"]
    assert [row["trained on"] for row in maps] == [row["trained on"] for row in ranks] == names
    assert all(row[name][1] <= row[name][0] <= row[name][2] for row in maps for name in ("one", "two"))
    assert [(row["test set"], row["queries"]) for row in sets] == [
        ("one", sets[0]["queries"]),
        ("two", sets[1]["queries"]),
    ]
    for row, spread in zip(maps, spreads, strict=True):
        both = np.array([row["one"][0], row["two"][0]])
        found = [spread[name][0] for name in ("mean mAP", "standard deviation", "highest less lowest")]
        assert found == pytest.approx([both.mean(), both.std(), np.ptp(both)])
        assert spread["lowest on"] == ("one", "two")[both.argmin()]
    assert (crossed / "scores.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((crossed / "scores" / "colour" / "one.json").read_text())
    precision = [value for value in kept["queries"]["mAP"] if value is not None]
    assert np.mean(precision) == pytest.approx(kept["metrics"]["mAP"][0])


def test_its_folder_says_what_was_done(crossed: Path) -> None:
    stated = json.loads((crossed / "experiment.json").read_text())
    assert stated["experiment"] == "cross-domain"
    assert stated["settings"]["training"]["steps"] == STEPS
    assert stated["settings"]["training"]["seed"] == 0
    assert [(one["name"], one["version"], len(one["content_sha256"])) for one in stated["datasets"]] == [
        ("one", "1.0.0", 64),
        ("two", "1.0.0", 64),
    ]
    assert stated["packages"].keys() >= {"entire-id", "torch", "numpy"}


KILLED = """
import os, signal, sys
from entire_id.cli.main import app
from entire_id import staging

last, seen = int(sys.argv.pop(1)), 0

def watch(event, arguments):
    global seen
    if event == "os.rename" and "/out" in str(arguments[1]):
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
app()
"""


def test_a_killed_run_goes_on_to_the_same_bytes_without_doing_anything_twice(crossed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["experiment", "cross-domain", "--out", str(out), *CROSS]
    done = subprocess.run([sys.executable, "-c", KILLED, "12", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    before = {path: path.stat().st_mtime_ns for path in [*out.glob("scores/*/*"), *out.glob("runs/*/model/*")]}
    assert before
    assert not (out / "table.md").exists()
    run("cross-domain", out, *CROSS)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert outputs(out) == outputs(crossed)


def test_scores_that_are_lost_are_made_from_features(crossed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(crossed, out)
    shutil.rmtree(out / "runs")
    (out / "scores" / "colour" / "one.json").write_text("{")
    times = {path: path.stat().st_mtime_ns for path in out.glob("features/colour/*/*.npy")}
    run("cross-domain", out, *CROSS)
    assert {path: path.stat().st_mtime_ns for path in out.glob("features/colour/*/*.npy")} == times
    assert not (out / "runs").exists()
    assert outputs(out) == outputs(crossed)


def test_another_experiment_in_the_folder_is_refused_by_what_differs(crossed: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="models .* there"):
        run("cross-domain", crossed, *CROSS, "--model", "colour", "other:model")
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputExistsError):
        run("cross-domain", tmp_path, *CROSS)


def test_a_network_that_was_trained_before_is_scored_as_it_is(crossed: Path, tmp_path: Path) -> None:
    found = run("cross-domain", tmp_path / "out", "--model", str(crossed / "runs" / "one" / "model"), "--test", "two")
    ((maps,), *_) = tables(found)
    assert maps["trained on"] == "one"
    ((first, *_), *_) = tables(json.loads((crossed / "table.json").read_text()))
    assert maps["two"] == first["two"]


# --- the others -------------------------------------------------------------------------------------------------------


def test_architectures_differ_in_the_network_alone(tmp_path: Path) -> None:
    from transformers import ViTConfig

    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    ViTConfig(**small, image_size=32, patch_size=8).save_pretrained(tmp_path / "small")
    options = [*TOY[2:], "--train", "one", "--test", "two", "--network", "tiny", str(tmp_path / "small")]
    maps, *_ = tables(run("architectures", tmp_path / "out", *options))
    assert [row["network"] for row in maps] == ["tiny", str(tmp_path / "small")]
    assert maps[0]["two"] != maps[1]["two"]


@pytest.mark.parametrize(("by", "only"), [("continent", []), ("camera", ["4", "7"])])
def test_leaving_one_out_trains_without_it_and_asks_for_it(tmp_path: Path, by: str, only: list[str]) -> None:
    options = ["--train", "one", "--by", by, *(["--only", *only] if only else []), *TOY]
    ((*rows,),) = tables(run("leave-one-out", tmp_path / "out", *options))
    assert len(rows) == (2 if only else 4)
    for row in rows:
        run_of = tmp_path / "out" / "runs" / f"without-{by}-{row[by]}" / "config.json"
        trained = json.loads(run_of.read_text())["settings"][f"only_{by}s"]
        assert row[by] not in map(str, trained)
        assert row["difference"][0] == pytest.approx(row["mAP without"][0] - row["mAP with"][0])
        assert row["queries"] > 0
    everything = json.loads((tmp_path / "out" / "runs" / "everything" / "config.json").read_text())
    assert everything["settings"][f"only_{by}s"] == []


def test_groups_are_those_of_any_column(tmp_path: Path) -> None:
    (rows,) = tables(run("groups", tmp_path / "out", "--model", "colour", "--test", "one", "two", "--by", "scene"))
    assert {row["test set"] for row in rows} == {"one", "two"}
    sizes = json.loads((tmp_path / "out" / "scores" / "colour" / "one.json").read_text())
    assert sum(row["queries"] for row in rows if row["test set"] == "one") == sizes["num_valid_query"]


@pytest.mark.parametrize("of", ["people", "cameras", "continents"])
def test_size_trains_on_nested_parts(tmp_path: Path, of: str) -> None:
    options = ["--train", "one", "--test", "two", "--of", of, "--share", "1", "0.5", *TOY]
    (rows,) = tables(run("size", tmp_path / "out", *options))
    assert [row[f"share of {of} (%)"] for row in rows] == [0.5, 1]
    assert rows[0][of] == (rows[1][of] + 1) // 2
    assert rows[0]["crops"] < rows[1]["crops"]


def test_blurred_heads_are_compared_on_the_same_queries(tmp_path: Path) -> None:
    (rows,) = tables(run("blur", tmp_path / "out", "--model", "colour", "--test", "one", "two"))
    assert [row["model"] for row in rows] == ["colour on one", "colour on two"]
    for row in rows:
        assert row["mAP difference"][0] == pytest.approx(row["mAP blurred"][0] - row["mAP plain"][0])
        assert row["mAP difference"][0] != 0


def test_a_pair_of_ones_own_is_compared_by_two_models(home: Path, tmp_path: Path) -> None:
    from PIL import Image, ImageFilter

    shutil.copytree(home / "one-crops", tmp_path / "soft-crops")
    for path in (tmp_path / "soft-crops").rglob("*.jpg"):
        Image.open(path).filter(ImageFilter.GaussianBlur(3)).save(path, quality=95)
    pack_folder(tmp_path / "soft-crops", tmp_path / "soft")
    options = ["--pair", "one", str(tmp_path / "soft"), "--retrain", *TOY]
    ((row,),) = tables(run("blur", tmp_path / "out", *options))
    assert row["model"] == "each trained on its own"
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == ["one", "soft"]
    with pytest.raises(ExperimentError, match="queries are in one of the two alone"):
        run("blur", tmp_path / "other", "--pair", "one", "two", "--model", "colour")


def test_tsne_draws_the_sets_and_measures_their_gap(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options = ["--data", "one", "two", "--perplexity", "5", "--crops", "20"]
    ((row,),) = tables(run("tsne", tmp_path / "out", *options))
    assert (row["set"], row["other set"], row["crops"]) == ("one", "two", 20)
    assert row["from"] <= row["MMD²"] <= row["to"] or row["from"] < row["to"]
    run("tsne", tmp_path / "again", *options)
    assert outputs(tmp_path / "again") == outputs(tmp_path / "out")
    assert (tmp_path / "again" / "points.json").read_bytes() == (tmp_path / "out" / "points.json").read_bytes()
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "tsne-set.png",
        "tsne-continent.png",
        "tsne-camera.png",
    }


def test_wrong_usage_is_told(home: Path, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["experiment", *arguments, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2
        return done.stderr

    assert "--train on" in told("cross-domain", "--test", "one")
    assert "NAME=VALUE" in told("cross-domain", "--train", "one", "--test", "one", "--set", "p")
    assert "is none of" in told("cross-domain", "--train", "one", "--test", "one", "--set", "datasets=1")
    assert "--pair" in told("blur", "--model", "colour")
    assert "--retrain" in told("blur", "--test", "one", "--retrain")
    assert not (tmp_path / "out").exists()


# --- inside one camera ------------------------------------------------------------------------------------------------


def common_cameras(home: Path) -> list[str]:
    """Return cameras of the train part of `one` with at least two people, of which there are queries, too."""
    crops, queries = CropDataset(home / "one", "train"), CropDataset(home / "one", "query")
    return [
        str(camid)
        for camid in np.unique(queries.camids).tolist()
        if len(np.unique(crops.pids[crops.camids == camid])) >= 2
    ]


def test_inside_one_camera_three_models_meet_the_same_queries_twice_alike(home: Path, tmp_path: Path) -> None:
    camera = common_cameras(home)[0]
    options = ["--train", "one", "--camera", camera, "--tune-steps", "1", "--tune-rate", "0.001", *TOY]
    ((row,),) = tables(run("intra-camera", tmp_path / "out", *options))
    assert row["camera"] == camera
    names = ("mAP across", "mAP fine-tuned", "mAP inside alone")
    assert all(0 <= row[name][0] <= 1 for name in names)
    assert row["fine-tuned less across"][0] == pytest.approx(row["mAP fine-tuned"][0] - row["mAP across"][0])
    stated = json.loads((tmp_path / "out/runs" / f"fine-tuned-inside-camera-{camera}" / "config.json").read_text())
    assert stated["settings"]["only_cameras"] == [int(camera)]
    assert stated["settings"]["steps"] == 1
    run("intra-camera", tmp_path / "again", *options)
    assert outputs(tmp_path / "again") == outputs(tmp_path / "out")


def test_cameras_of_another_data_set_are_refused(tmp_path: Path) -> None:
    for name in ("intra-camera", "leave-one-out"):
        options = ["--by", "camera"] if name == "leave-one-out" else []
        with pytest.raises(ExperimentError, match="camera numbers of .*one mean nothing in it"):
            run(name, tmp_path / "out", "--train", "one", "--test", "two", *options, *TOY)


def test_a_camera_that_nobody_queried_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no camera 999 in both"):
        run("intra-camera", tmp_path / "out", "--train", "one", "--camera", "999", *TOY)
