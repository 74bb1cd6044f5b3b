"""Every experiment from packed sets to table and plots, twice, and after a kill."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import close_session
from typer.testing import CliRunner

from entire_id.cli.main import app
from entire_id.errors import EvaluationError, ExperimentError, ModelError, OutputExistsError
from entire_id.experiments.config import TrainConfig
from entire_id.experiments.intra_camera import find_cameras
from entire_id.experiments.results import find_datasets
from entire_id.loading.dataset import CropDataset
from entire_id.sources.sample import SampleConfig, draw_sample

from builders import pack_folder
from webserver import web_server

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


def run_twice(name: str, home: Path, *options: str) -> dict[str, Any]:
    """Run an experiment into `out` and into `again`, to the same bytes, and return its table."""
    found = run(name, home / "out", *options)
    run(name, home / "again", *options)
    assert outputs(home / "again") == outputs(home / "out")
    return found


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
        found = [spread["mean mAP"][0], spread["standard deviation"], spread["highest less lowest"]]
        assert found == pytest.approx([both.mean(), both.std(), np.ptp(both)])
        assert 0 < 2 * spread["deviation by chance"] == pytest.approx(spread["width by chance"])  # of two sets
        assert spread["lowest on"] == ("one", "two")[both.argmin()]
    assert (crossed / "scores.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((crossed / "scores" / "colour" / "one.json").read_text())
    precision = [value for value in kept["queries"]["mAP"] if value is not None]
    assert np.mean(precision) == pytest.approx(kept["metrics"]["mAP"][0])


def test_its_folder_says_what_was_done(crossed: Path) -> None:
    stated = json.loads((crossed / "experiment.json").read_text())
    assert stated["experiment"] == "cross-domain"
    assert (stated["training"]["steps"], stated["training"]["seed"]) == (STEPS, 0)
    assert stated["weights"] == {"tiny": "tiny"}
    for role in ("train", "test"):
        sets = stated["datasets"][role]
        assert [(one["name"], one["version"]) for one in sets] == [("one", "1.0.0"), ("two", "1.0.0")]
    (packages,) = stated["packages"]
    assert packages.keys() >= {"entire-id", "torch", "numpy"}


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


def test_another_experiment_in_the_folder_is_refused_by_what_differs(home: Path, crossed: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="other settings: steps 2 there, 3 now. Give the same"):
        run("cross-domain", crossed, *CROSS, "--steps", "3")
    with pytest.raises(ExperimentError, match="experiment 'cross-domain' there, 'groups' now"):
        run("groups", crossed, "--model", "colour", "--test", "one")
    draw_sample(tmp_path / "crops", SampleConfig(**SAMPLE, seed=7))
    other = pack_folder(tmp_path / "crops", tmp_path / "one")
    with pytest.raises(ExperimentError, match="contents of one '[0-9a-f]+' there"):
        run("cross-domain", crossed, "--model", "colour", "--test", str(other))
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputExistsError):
        run("cross-domain", tmp_path, *CROSS)
    with pytest.raises(OutputExistsError, match="it lies in the data set 'one'"):
        run("cross-domain", home / "one" / "out", *CROSS)
    with pytest.raises(OutputExistsError, match="cannot be made"):
        run("cross-domain", tmp_path / "mine" / "out", "--model", "colour", "--test", "one")


def test_more_may_be_asked_in_the_same_folder(crossed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("cross-domain", out, "--train", "one", "--test", "one", *TOY)
    times = {path: path.stat().st_mtime_ns for path in [*out.glob("scores/*/*"), *out.glob("runs/*/model/*")]}
    assert times
    (out / "runs" / "one" / "checkpoint.safetensors").unlink()  # it takes much room
    run("cross-domain", out, *CROSS, "--model", "colour", "colour")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert outputs(out) == outputs(crossed)


def test_other_versions_of_packages_are_told_and_noted(crossed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(crossed, out)
    stated = json.loads((out / "experiment.json").read_text())
    stated["packages"][0]["numpy"] = "1.0"
    (out / "experiment.json").write_text(json.dumps(stated))
    done = CliRunner().invoke(app, ["experiment", "cross-domain", "--out", str(out), *CROSS], catch_exceptions=False)
    assert "by now, and was 1.0 when this began" in done.stderr
    assert [one["numpy"] for one in json.loads((out / "experiment.json").read_text())["packages"]] == [
        "1.0",
        np.__version__,
    ]


def test_what_was_trained_on_the_people_of_a_test_set_is_named(tmp_path: Path) -> None:
    run("cross-domain", tmp_path / "out", "--train", "one", "--test", "one", *TOY, "split=gallery")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "Trained on the very people of a test set: one. There they meet nobody new" in table
    assert "within one domain" not in table


def test_a_network_that_was_trained_before_is_scored_as_it_is(crossed: Path, tmp_path: Path) -> None:
    found = run("cross-domain", tmp_path / "out", "--model", str(crossed / "runs" / "one" / "model"), "--test", "two")
    ((maps,), *_) = tables(found)
    assert maps["trained on"] == "one"
    ((first, *_), *_) = tables(json.loads((crossed / "table.json").read_text()))
    assert maps["two"] == first["two"]


# --- the others -------------------------------------------------------------------------------------------------------


def test_architectures_differ_in_the_network_alone(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    bottlenecks = {"layer_type": "bottleneck", "hidden_sizes": [32, 64], "depths": [1, 2]}  # those of ResNet-50, fewer
    resnet = tmp_path / "resnet"
    ResNetModel(ResNetConfig(embedding_size=16, **bottlenecks)).save_pretrained(resnet)
    options = [*TOY[2:], "--train", "one", "--test", "two", "--network", "tiny", str(resnet)]
    maps, *_ = tables(run_twice("architectures", tmp_path, *options))
    assert [row["network"] for row in maps] == ["tiny", "resnet"]
    assert maps[0]["two"] != maps[1]["two"]
    paths = [tmp_path / "out" / "runs" / name / "config.json" for name in ("tiny", "resnet")]
    tiny, other = (json.loads(path.read_text()) for path in paths)
    assert other["settings"]["model"] == str(resnet)
    assert tiny["settings"] | {"model": str(resnet)} == other["settings"]


@pytest.mark.parametrize(("by", "only"), [("continent", ["asia", "europe"]), ("camera", ["4", "7"])])
def test_leaving_one_out_trains_without_it_and_asks_for_it(tmp_path: Path, by: str, only: list[str]) -> None:
    options = ["--train", "one", "--by", by, "--only", *only, *TOY]
    (rows,) = tables(run_twice("leave-one-out", tmp_path, *options))
    assert len(rows) == 2
    for row in rows:
        run_of = tmp_path / "out" / "runs" / f"without-{by}-{row[by]}" / "config.json"
        trained = json.loads(run_of.read_text())["settings"][f"only_{by}s"]
        assert row[by] not in map(str, trained)
        assert row["difference"][0] == pytest.approx(row["mAP without"][0] - row["mAP with"][0])
        assert row["queries"] > 0
    everything = json.loads((tmp_path / "out" / "runs" / "everything" / "config.json").read_text())
    assert everything["settings"][f"only_{by}s"] == []


def test_groups_follow_what_owners_say_of_cameras_by_now(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "one", tmp_path / "one")
    options = ["--model", "colour", "--test", str(tmp_path / "one"), "--by", "season"]
    with pytest.raises(EvaluationError, match="no column 'season'"):
        run("groups", tmp_path / "out", *options)
    cameras = tmp_path / "one" / "cameras.csv"
    for season in ("winter", "summer"):
        head, *lines = cameras.read_text().splitlines()
        head, lines = head.removesuffix(",season"), [re.sub(",(winter|summer)$", "", line) for line in lines]
        cameras.write_text("\n".join([f"{head},season", *(f"{line},{season}" for line in lines)]) + "\n")
        ((row,),) = tables(run("groups", tmp_path / "out", *options))
        assert row["season"] == season


def test_groups_are_those_of_any_column(tmp_path: Path) -> None:
    (rows,) = tables(run_twice("groups", tmp_path, "--model", "colour", "--test", "one", "two", "--by", "scene"))
    assert {row["test set"] for row in rows} == {"one", "two"}
    sizes = json.loads((tmp_path / "out" / "scores" / "colour" / "one.json").read_text())
    assert sum(row["queries"] for row in rows if row["test set"] == "one") == sizes["num_valid_query"]


@pytest.mark.parametrize("of", ["people", "cameras", "continents"])
def test_size_trains_on_nested_parts(tmp_path: Path, of: str) -> None:
    options = ["--train", "one", "--test", "two", "--of", of, "--share", "1", "0.5", *TOY]
    (rows,) = tables(run_twice("size", tmp_path, *options))
    assert [row[f"share of {of} (%)"] for row in rows] == [0.5, 1]
    assert rows[0][of] == (rows[1][of] + 1) // 2
    assert rows[0]["crops"] < rows[1]["crops"]


def test_blurred_heads_are_compared_on_the_same_queries(tmp_path: Path) -> None:
    (rows,) = tables(run_twice("blur", tmp_path, "--model", "colour", "--test", "one", "two"))
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
    ((row,),) = tables(run_twice("blur", tmp_path, *options))
    assert row["model"] == "each trained on its own"
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == ["one", "soft"]
    next((tmp_path / "soft-crops" / "bounding_box_train").iterdir()).unlink()
    pack_folder(tmp_path / "soft-crops", tmp_path / "fewer")
    with pytest.raises(ExperimentError, match="1 crops of train are in one of the two alone"):
        run("blur", tmp_path / "other", "--pair", "one", str(tmp_path / "fewer"), "--retrain", *TOY)
    with pytest.raises(
        ExperimentError, match=r"two': it is not .*one blurred: [0-9]+ crops of query\+gallery are in one of the two"
    ):
        run("blur", tmp_path / "other", "--pair", "one", "two", "--retrain", *TOY)
    assert not (tmp_path / "other").exists()


def test_tsne_draws_the_sets_and_measures_their_gap(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    options = ["--data", "one", "two", "--perplexity", "5", "--crops", "20"]
    ((row,),) = tables(run_twice("tsne", tmp_path, *options))
    assert (row["set"], row["other set"], row["crops"]) == ("one", "two", 20)
    assert -1 < row["from"] < row["to"] < 2
    assert (tmp_path / "again" / "points.json").read_bytes() == (tmp_path / "out" / "points.json").read_bytes()
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "tsne-set.png",
        "tsne-continent.png",
        "tsne-camera.png",
    }


def test_wrong_usage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["experiment", *arguments, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2
        return done.stderr

    assert "--train on" in told("cross-domain", "--test", "one")
    assert "NAME=VALUE" in told("cross-domain", "--train", "one", "--test", "one", "--set", "p")
    assert "is none of" in told("cross-domain", "--train", "one", "--test", "one", "--set", "datasets=1")
    assert "p 'abc' is not of type int" in told("cross-domain", "--train", "one", "--test", "one", "--set", "p=abc")
    assert "twice" in told("cross-domain", "--train", "one", "--test", "one", "--set", "p=4", "p=2")
    assert "of its own, --seed" in told("cross-domain", "--train", "one", "--test", "one", "--set", "seed=2")
    assert "there is none" in told("cross-domain", "--model", "colour", "--test", "one", "--set", "p=2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "an experiment is one process" in told("cross-domain", "--model", "colour", "--test", "one")
    monkeypatch.delenv("WORLD_SIZE")
    joined = ["--train", "one", "two", "--joined", "--test", "one"]
    assert "needs one data set" in told("cross-domain", *joined, "--set", "side=camera")
    assert "people_share" in told("size", "--train", "one", "--test", "one", "--set", "stream=true", *TOY[2:6])
    assert "--pair" in told("blur", "--model", "colour")
    assert "--retrain" in told("blur", "--test", "one", "--retrain")
    assert "heeded by none" in told("cross-domain", "--model", "colour", "--test", "one", "--model-size", "8x8")
    assert "takes two data sets" in told("blur", "--pair", "one", "./one", "--model", "colour")
    assert not (tmp_path / "out").exists()


def test_data_sets_elsewhere_give_the_same_table(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with web_server(home) as server:
        far = [f"{server.url}/{name}" for name in ("one", "two")]
        found = tables(run("cross-domain", tmp_path / "far", "--train", far[0], "--test", far[1], *TOY))
        close_session()
    near = tables(run("cross-domain", tmp_path / "near", "--train", "one", "--test", "two", *TOY))
    names = {"entire-id": "one", "entire-id-2": "two"}  # their manifests call both alike
    assert json.loads(re.sub("entire-id(-2)?", lambda match: names[match[0]], json.dumps(found))) == near


# --- found before anything is trained ---------------------------------------------------------------------------------


def test_what_cannot_be_scored_is_refused_before_anything_is_trained(home: Path, tmp_path: Path) -> None:
    for column in ("saeson", "camera_pair"):
        with pytest.raises(EvaluationError, match=f"no column '{column}'"):
            run("groups", tmp_path / "groups", "--train", "one", "--test", "one", "two", "--by", column, *TOY)
    with pytest.raises(ModelError, match="no such model"):
        run("cross-domain", tmp_path / "models", "--train", "one", "--model", "nosuch", "--test", "one", *TOY)
    with pytest.raises(ExperimentError, match="'one' cannot be trained: 12 identities"):
        run("cross-domain", tmp_path / "later", "--train", "one", "--test", "one", *TOY[:-2], "p=99", "k=2")
    run("cross-domain", tmp_path / "later", "--train", "one", "--test", "one", *TOY)
    nowhere = tmp_path / "nowhere"
    (home / "one-crops" / "cameras.csv").rename(tmp_path / "cameras.csv")
    try:
        pack_folder(home / "one-crops", nowhere)
    finally:
        (tmp_path / "cameras.csv").rename(home / "one-crops" / "cameras.csv")
    with pytest.raises(ExperimentError, match="none is left; cameras.csv says where cameras stand"):
        run("leave-one-out", tmp_path / "without", "--train", str(nowhere), *TOY)
    with pytest.raises(EvaluationError, match="needs to know where crops were taken"):
        run("leave-one-out", tmp_path / "without", "--train", "one", "--test", str(nowhere), "--only", "unknown", *TOY)
    camera = common_cameras(home)[0]
    with pytest.raises(ExperimentError, match=f"'fine-tuned inside camera {camera}' cannot be trained: .* of p 12"):
        run("intra-camera", tmp_path / "inside", "--train", "one", "--camera", camera, *TOY[:-2], "p=12", "k=2")
    with pytest.raises(ExperimentError, match="no camera has seen 13 people"):
        run("intra-camera", tmp_path / "none", "--train", "one", *TOY[:-2], "p=13", "k=2")
    assert [path.parent.name for path in tmp_path.glob("*/runs")] == ["later"]


def test_other_weights_of_the_same_name_are_another_experiment(crossed: Path, tmp_path: Path) -> None:
    shutil.copytree(crossed / "runs" / "one" / "model", tmp_path / "start")
    options = ["--train", "two", "--test", "two", *TOY[2:], "--network", str(tmp_path / "start")]
    run("cross-domain", tmp_path / "out", *options)
    shutil.rmtree(tmp_path / "start")
    shutil.copytree(crossed / "runs" / "two" / "model", tmp_path / "start")
    with pytest.raises(ExperimentError, match="weights .*/start@sha256.* there, .*/start@sha256.* now"):
        run("cross-domain", tmp_path / "out", *options)


def test_a_function_that_prepares_crops_otherwise_is_embedded_anew(tmp_path: Path, monkeypatch) -> None:
    module = tmp_path / "looks_at.py"
    module.write_text(
        "import numpy as np\n"
        "def corner(images):\n"
        "    return np.array([image[:4, :4].reshape(-1)[:48] for image in images], np.float32)\n"
        "corner.version = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--model", "looks_at:corner", "--test", "one"]
    run("cross-domain", tmp_path / "out", *options)
    (features,) = (tmp_path / "out" / "features").rglob("query.npy")
    written = features.stat().st_mtime_ns
    run("cross-domain", tmp_path / "out", *options)
    assert features.stat().st_mtime_ns == written
    sys.modules["looks_at"].corner.version = 2
    run("cross-domain", tmp_path / "out", *options)
    assert features.stat().st_mtime_ns > written


WORKS = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("works", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_share_a_folder(crossed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(crossed, out)
    command = [sys.executable, "-c", WORKS, str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "works\n"
        stated = (out / "experiment.json").read_bytes()
        with pytest.raises(ExperimentError, match="another process is at work there"):
            run("cross-domain", out, "--model", "colour", "--test", "one")
        assert (out / "experiment.json").read_bytes() == stated
        other.stdin.close()
    run("cross-domain", out, *CROSS)


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
    ((row,),) = tables(run_twice("intra-camera", tmp_path, *options))
    assert row["camera"] == camera
    names = ("mAP across", "mAP gone on across", "mAP fine-tuned", "mAP inside alone")
    assert all(0 <= row[name][0] <= 1 for name in names)
    gap = row["mAP fine-tuned"][0] - row["mAP gone on across"][0]
    assert row["fine-tuned less gone on across"][0] == pytest.approx(gap)
    stated = json.loads((tmp_path / "out/runs" / f"fine-tuned-inside-camera-{camera}" / "config.json").read_text())
    assert stated["settings"]["only_cameras"] == [int(camera)]
    assert stated["settings"]["steps"] == 1
    assert stated["weights"].startswith("across-cameras/model@sha256:")
    (tmp_path / "out").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "scores")
    run("intra-camera", tmp_path / "moved", *options)
    assert outputs(tmp_path / "moved") == outputs(tmp_path / "again")
    with pytest.raises(ExperimentError, match="other settings: steps 1 there, 2 now"):
        run("intra-camera", tmp_path / "moved", *options, "--tune-steps", "2")


def test_cameras_with_too_few_people_are_left_out_and_named(home: Path) -> None:
    crops = CropDataset(home / "one", "train")
    people = {camid: len(np.unique(crops.pids[crops.camids == camid])) for camid in np.unique(crops.camids).tolist()}
    base = TrainConfig(datasets=("one",), p=3)
    which = find_cameras(base, find_datasets(["one"])["one"])
    assert which.compared
    assert which.left_out
    assert all(people[camid] >= 3 for camid in which.compared)
    assert all(people[camid] < 3 for camid in which.left_out)
    assert set(map(int, common_cameras(home))) >= set(which.compared)


def test_cameras_of_another_data_set_are_refused(tmp_path: Path) -> None:
    for name in ("intra-camera", "leave-one-out"):
        options = ["--by", "camera"] if name == "leave-one-out" else []
        with pytest.raises(ExperimentError, match="camera numbers of .*one mean nothing in it"):
            run(name, tmp_path / "out", "--train", "one", "--test", "two", *options, *TOY)


def test_a_camera_that_nobody_queried_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no camera 999 in both train part and queries that can be scored"):
        run("intra-camera", tmp_path / "out", "--train", "one", "--camera", "999", *TOY)
