"""The command line as a user meets it: real processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from entire_id.cli.main import app
from entire_id.evaluation.features import score_blocks
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.ranking import evaluate_blocks
from entire_id.evaluation.reranking import RerankConfig, expand_queries, rerank
from entire_id.loading.embed import embed, read_features

from builders import crop_names, write_crops
from cousins import draw_crops, small_tree, write_tree


def entire_id(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entire_id", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=120)


def test_the_spine(tmp_path: Path) -> None:
    for line in (
        "sample crops --crops 300",
        "pack crops entire-id",
        "verify entire-id",
        "info entire-id",
        "embed entire-id",
        "evaluate entire-id",
        "show entire-id people.png",
        "show entire-id ranking.jpg --ranked --rows 2",
    ):
        done = entire_id(*line.split(), folder=tmp_path)
        assert done.returncode == 0, done.stderr
    for name in ("people.png", "ranking.jpg"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 200


def test_pack_tells_what_it_did_on_stderr_and_prints_totals_on_stdout(crops: Path, tmp_path: Path) -> None:
    (crops / "query" / "Thumbs.db").write_bytes(b"")
    done = entire_id("pack", crops, "entire-id", folder=tmp_path)
    assert "gallery" in done.stdout
    assert "Thumbs" not in done.stdout + done.stderr
    assert "rejected 1 files (1 not-an-image); each stands with its reason in entire-id.rejected.csv" in done.stderr
    assert "there is no train part (ENTIRe-ID's was not released by the authors)" in done.stderr
    assert "next: entire-id verify entire-id" in done.stderr
    assert "unknown" not in done.stderr


def test_pack_says_once_that_continents_are_unknown(crops: Path, tmp_path: Path) -> None:
    (crops / "cameras.csv").unlink()
    done = entire_id("pack", crops, tmp_path / "entire-id")
    assert done.stderr.count("continent is 'unknown' for 3 cameras that no cameras.csv describes") == 1


def test_pack_warns_of_reserved_continents_before_it_starts(crops: Path, tmp_path: Path) -> None:
    (crops / "cameras.csv").write_text("camid,continent\n0,asia\n1,test\n21,North America\n")
    done = entire_id("pack", crops, tmp_path / "entire-id", "--json")
    assert done.stderr.startswith("cameras.csv gives camera 1 a continent that cannot name a config")
    report = json.loads(done.stdout)
    assert report["rejected"] == {"continent": 12}
    assert report["continents"] == ["asia", "north_america"]
    assert report["splits"]["query"]["rows"] == 8


def test_json_is_all_that_stdout_holds(packed: Path, tmp_path: Path) -> None:
    entire_id("embed", packed)
    for arguments in (["info", packed], ["verify", packed], ["evaluate", packed]):
        done = entire_id(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
    scores = json.loads(done.stdout)
    assert 0 <= scores["mAP"] <= scores["rank10"] <= 1


def test_pack_says_which_lists_are_not_there_and_what_cannot_be_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stderr

    monkeypatch.chdir(tmp_path)
    msmt = write_tree(tmp_path / "msmt", draw_crops(small_tree("msmt17-v2")))
    for name in ("list_val.txt", "list_gallery.txt"):
        (msmt / name).unlink()
    said = told("pack", "msmt", "part", "--layout", "msmt17-v2")
    assert "msmt17-v2: not all of its lists are there, list_val.txt, list_gallery.txt missing: crops" in said
    assert "part has no gallery: it cannot be scored" in said
    said = told("verify", "part")
    assert "part has no gallery: it cannot be scored" in said
    assert "next:" not in said

    write_tree(tmp_path / "duke", draw_crops(small_tree("dukemtmc-reid")))
    said = told("pack", "duke", "occluded", "--layout", "occluded-duke")
    assert "occluded-duke: none of its lists is there (train.list, query.list, gallery.list): crops are" in said
    assert "cannot be scored" not in said


def test_warnings_are_one_line_and_ctrl_c_says_what_is_left(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "stopping.py").write_text(
        "import os, signal, warnings\n"
        "import numpy as np\n"
        "def describe(images):\n"
        "    if len(images) > 1:\n"
        "        warnings.warn('dark\\ncrops')\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return np.ones((len(images), 3))\n"
    )
    done = entire_id("embed", packed, "--model", "stopping:describe", folder=tmp_path)
    assert done.returncode == 130
    assert done.stderr.splitlines() == ["warning: dark crops", "stopped; the same command goes on"]


def test_ctrl_c_promises_nothing_where_nothing_is_kept(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("entire_id.show.draw_people", stop)
    monkeypatch.setattr("entire_id.hub.versions.verify_revision", stop)
    for arguments in (["show", str(packed), "people.png"], ["verify", "owner/entire-id@v1.0.0"]):
        done = CliRunner().invoke(app, arguments)
        assert (done.exit_code, done.stderr) == (130, "stopped\n")


def test_evaluate_shows_parts_and_what_differs(packed: Path, tmp_path: Path) -> None:
    features, other = tmp_path / "features", tmp_path / "other"
    embed(packed, ["query", "gallery"], "colour", features)
    shutil.copytree(features, other)
    values = np.load(other / "gallery.npy")
    np.save(other / "gallery.npy", values[np.random.default_rng(0).permutation(len(values))])
    options = ["--features", features, "--by", "camera", "--by", "camera_pair", "--compare", other]
    done = entire_id("evaluate", packed, *options, "--max-rank", "5", "--tie", "best")
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in words if line and line[0] in {"mAP", "Rank-5", "Rank-10"}] == ["mAP", "Rank-5"] * 2
    assert ["0", "4"] in [line[:2] for line in words]  # camera 0 has four queries
    assert "mAP, %" in done.stdout
    assert f"equal with {other}" in done.stderr
    assert "12 queries against 24 gallery crops, 0 queries skipped; protocol market1501" in done.stderr
    assert "warning: ties make the mAP ambiguous by" in done.stderr

    options = ["--features", features, "--compare", other, "--protocol", "leave_one_continent_out", "--json"]
    report = json.loads(entire_id("evaluate", packed, *options).stdout)
    assert report["protocol"]["name"] == "leave_one_continent_out"
    assert set(report["by"]["continent"]["asia"]) >= {"mAP", "mAP_low", "mAP_high"}
    assert set(report["by"]["continent"]) == {"asia", "europe"}
    assert report["comparison"]["differences"]["mAP"]["value"] < 0
    assert report["intervals"]["mAP"][0] <= report["mAP"] <= report["intervals"]["mAP"][1]
    assert len(report["cmc"]) == 50
    assert report["warnings"][-1] == "the gallery has 24 crops, fewer than 50 ranks: the CMC curve is flat beyond"


def test_evaluate_reranks_as_the_library_does(packed: Path, tmp_path: Path) -> None:
    out = embed(packed, ["query", "gallery"], "colour", tmp_path / "features")
    query, gallery = (read_features(packed, split, out) for split in ("query", "gallery"))
    config = RerankConfig.preset("original", k1=7, k2=2, lambda_=0.1)
    labels = Labels.of(query.pids, gallery.pids, query.camids, gallery.camids)
    expanded = expand_queries(query.values, gallery.values, 3)
    expected = evaluate_blocks(rerank(expanded, gallery.values, config), labels)
    options = ["--features", out, "--rerank", "--preset", "original", "--k1", 7, "--k2", 2, "--lambda", 0.1]
    report = json.loads(entire_id("evaluate", packed, *options, "--expand", 3, "--json").stdout)
    assert (report["mAP"], report["mINP"]) == (expected.mAP, expected.mINP)
    assert report["reranking"]["preset"] == "original"
    assert (report["reranking"]["k1"], report["expand"]) == (7, 3)

    plain = evaluate_blocks(rerank(query.values, gallery.values), labels)
    done = entire_id("evaluate", packed, "--features", out, "--rerank", "--by", "camera_pair", "--compare", out)
    assert f"{100 * plain.mAP:.2f}" in done.stdout
    assert "; protocol market1501; re-ranked (default: k1 20, k2 6, lambda 0.3)" in done.stderr
    assert f"equal with {out}" in done.stderr

    done = entire_id("evaluate", packed, "--features", out, "--expand", 2)
    alone = evaluate_blocks(score_blocks(expand_queries(query.values, gallery.values, 2), gallery.values), labels)
    assert f"{100 * alone.mAP:.2f}" in done.stdout
    assert done.stderr.splitlines()[0].endswith("; protocol market1501; queries expanded by 2 crops")

    done = entire_id("evaluate", packed, "--features", out, "--rerank", "--protocol", "multi_query")
    message = "protocol 'multi_query' pools the features of queries, and does not go with re-ranking"
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2


def test_evaluate_breaks_down_by_what_the_owner_says_of_cameras(packed: Path, tmp_path: Path) -> None:
    out = embed(packed, ["query", "gallery"], "colour", tmp_path / "features")
    done = entire_id("evaluate", packed, "--features", out, "--by", "scene", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["by"]["scene"]
    assert {name: part["num_query"] for name, part in found.items()} == {"beach": 4, "mall": 4, "street": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--by", "seasn"],
            "the queries have no column 'seasn'; there is camera, camera_pair, num_positives, continent, scene",
        ),
        (["--compare", "none"], "'none': no features of query"),
        (["--by", "camera_pair", "--protocol", "multi_query"], "protocol 'multi_query' pools queries"),
    ],
)
def test_evaluate_checks_what_it_was_given_before_it_scores(
    packed: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    """Features that cannot be scored would be the first thing to be said, were they scored first."""
    out = embed(packed, ["query", "gallery"], "colour", tmp_path / "features")
    np.save(out / "query.npy", np.full((12, 864), np.nan, np.float32))
    done = entire_id("evaluate", packed, "--features", out, *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "NaN" not in done.stderr


def test_info_counts_crops_by_continent(packed: Path) -> None:
    lines = entire_id("info", packed).stdout.splitlines()
    assert ["asia", "8", "16"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pack", "none", "out"], 1, "error: 'none': no such file or folder"),
        (["pack", "crops", "out", "--version", "1"], 2, "version '1' is not of the form 1.2.0"),
        (["pack", "crops", "out", "--layout", "duke"], 1, "unknown layout 'duke'; expected one of entire-id"),
        (["pack", "crops", "crops/out"], 1, "it lies inside the folder of crops"),
        (["pack", "crops", "out", "--format", "lmdb"], 2, "'lmdb' is not one of"),
        (["verify", "crops"], 1, "no manifest.json in it. Make one with: entire-id pack"),
        (["info", "none"], 1, "no such folder"),
        (["evaluate", "entire-id", "--features", "none"], 1, "entire-id embed DIR --model MODEL"),
        (["embed", "entire-id", "--split", "train"], 1, "not released by the authors"),
        (["show", "entire-id", "picture.gif"], 2, "ends neither in .png nor in .jpg"),
        (["demo", "crops"], 1, "which no demo made"),
        (["sample", "crops"], 1, "it is not empty"),
        (["pack", "crops", "out", "--seed", "-1"], 2, "Invalid value for '--seed'"),
        (["demo", "out", "--crops", "2000000"], 2, "expected 20 to 1,000,000"),
        (["pack", "crops/query", "out"], 1, "That is one of them: give the folder that holds it"),
        (["pack", "entire-id", "out"], 1, "It is packed already: see entire-id info"),
        (["pack", "crops/cameras.csv", "out"], 1, "no column path, pid, split"),
        (["pack", "crops/query/00000_c000s0_760487.jpg", "out"], 1, "neither a folder, nor a whole zip archive, nor a"),
        (["embed", "entire-id", "--model", "resnet"], 1, "model 'resnet': no such model; expected colour, a folder"),
        (["embed", "entire-id", "--size", "256"], 2, "'256' is not of the form 256x128"),
        (["embed", "entire-id", "--size", "256x128"], 1, "cannot heed the option size"),
        (["embed", "entire-id", "--std", "0,1,1"], 2, "is not above 0"),
        (["embed", "none", "--model", "x.onnx"], 1, "no such folder"),
        (["evaluate", "entire-id", "--k1", "5"], 2, "--preset, --k1, --k2 and --lambda say how to --rerank"),
        (["evaluate", "entire-id", "--rerank", "--preset", "duke"], 2, "no preset 'duke'; there is original,"),
        (["evaluate", "entire-id", "--rerank", "--lambda", "2"], 2, "lambda_ 2.0 is not in 0..1"),
        (["evaluate", "entire-id", "--protocol", "duke"], 2, "no protocol 'duke'; there is market1501,"),
        (["evaluate", "entire-id", "--tie", "random"], 2, "'random' is not one of"),
        (["evaluate", "entire-id", "--max-rank", "0"], 2, "Invalid value for '--max-rank'"),
    ],
)
def test_errors_say_what_to_do_and_have_their_exit_code(
    packed: Path, arguments: list[str], code: int, message: str
) -> None:
    before = sorted(packed.parent.rglob("*"))
    done = entire_id(*arguments, folder=packed.parent)
    assert done.returncode == code
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(packed.parent.rglob("*")) == before


def test_verify_exits_with_3_and_a_list(packed: Path) -> None:
    os.truncate(packed / "data/query/asia-00000.parquet", 100)
    done = entire_id("verify", packed)
    assert done.returncode == 3
    assert "data/query/asia-00000.parquet" in done.stdout
    assert "size" in done.stdout
    report = json.loads(entire_id("verify", packed, "--json").stdout)
    assert report["problems"][0]["kind"] == "size"


def test_strict_stops_at_the_first_bad_file(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", crop_names())
    (crops / "query" / "anna.jpg").write_bytes(b"")
    done = entire_id("pack", crops, tmp_path / "entire-id", "--strict")
    assert done.returncode == 1
    assert "'query/anna.jpg': rejected: name" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_tables_in_a_pipe_are_not_folded(packed: Path) -> None:
    os.truncate(packed / "data/query/asia-00000.parquet", 100)
    lines = entire_id("verify", packed).stdout.splitlines()
    assert any("data/query/asia-00000.parquet" in line and "expected" in line for line in lines)


def test_terminals_that_know_ascii_only_and_closed_streams_are_no_trouble(packed: Path) -> None:
    (packed / "größe").write_text("")
    for options in ([], ["--json"]):
        command = [sys.executable, "-m", "entire_id", "verify", str(packed), *options]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 3, done.stderr
        assert "gr" in done.stdout
    closed = subprocess.run(
        f"{sys.executable} -m entire_id verify {packed} 2>&-", shell=True, capture_output=True, text=True, check=False
    )
    assert closed.returncode == 3
    assert "unlisted" in closed.stdout


def test_version_of_the_package() -> None:
    assert entire_id("--version").stdout == "0.1.0\n"


def test_erase_says_what_went_and_where_it_still_is(packed: Path, crops: Path, tmp_path: Path) -> None:
    entire_id("embed", packed)
    notes = ["--tombstones", "t.jsonl", "--secret", "secret"]
    options = ["--person", "test/2", *notes, "--new-secret", "--log", "log.jsonl", "--reason", "asked"]
    done = entire_id("erase", packed, "new", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1.0.0 → 1.1.0" in done.stdout
    assert "searched all of new: nothing of what was taken out is in it" in done.stderr
    assert f"rm -r {packed}  # the data set itself" in done.stderr
    assert f"rm -r {packed}.features  # features" in done.stderr
    assert "next: entire-id verify new" in done.stderr
    assert "00002" not in done.stdout + done.stderr
    assert entire_id("verify", "new", folder=tmp_path).returncode == 0
    assert json.loads((tmp_path / "log.jsonl").read_text())["reason"] == "asked"
    again = entire_id("pack", crops, "again", *notes, folder=tmp_path)
    assert "rejected 9 files (9 erased)" in again.stderr


def test_erase_as_json_and_as_a_rehearsal(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("2\nquery/00003_c000s0_760487\n")
    before = sorted(tmp_path.iterdir())
    done = entire_id("erase", packed, "new", "--from", "list", "--dry-run", "--json", folder=tmp_path)
    assert json.loads(done.stdout) == {"version": "1.1.0", "crops": 10, "copies": 0, "shards": 4}
    done = entire_id("erase", packed, "new", "--from", "list", "--dry-run", folder=tmp_path)
    assert "nothing was written; what remains would be version 1.1.0" in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    done = entire_id("erase", packed, "new", "--from", "list", "--version", "3.0.0", "--json", folder=tmp_path)
    report = json.loads(done.stdout)
    assert (report["old_version"], report["version"]) == ("1.0.0", "3.0.0")
    assert (report["erased"]["people"], report["erased"]["crops"], report["erased"]["tombstones"]) == (1, 10, 0)
    assert report["leftovers"][0]["purge"] == f"rm -r {packed}"
    assert "no tombstones were written" in done.stderr


def test_erase_exit_codes(packed: Path, tmp_path: Path) -> None:
    for code, arguments in (
        (2, []),
        (2, ["--person", "nobody"]),
        (2, ["--person", "test/2", "--tombstones", "t"]),
        (2, ["--person", "test/2", "--reason", "no log"]),
        (2, ["--person", "test/2", "--version", "two"]),
        (1, ["--person", "test/99"]),
        (1, ["--key", "query/none"]),
        (1, ["--from", "none"]),
        (1, ["--person", "test/2", "--tombstones", "t", "--secret", "s"]),
    ):
        done = entire_id("erase", packed, "new", *arguments, folder=tmp_path)
        assert done.returncode == code, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "new").exists()
