"""Trainings from end to end: killed and gone on with, by one process and by two, and what they leave."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entire_id
from entire_id.errors import (
    MissingExtraError,
    ModelError,
    OutputExistsError,
    SamplingError,
    SelectionError,
    SplitNotFoundError,
    TrainingError,
)

from builders import CAMERAS, ended_well, pack_folder, tree, write_crops

torch = pytest.importorskip("torch")
for package in ("transformers", "accelerate", "tensorboard"):
    pytest.importorskip(package)

from safetensors.torch import load_file  # noqa: E402 needs torch

from entire_id.experiments.config import TrainConfig, learning_rate  # noqa: E402
from entire_id.experiments.network import find_weights, open_trained  # noqa: E402
from entire_id.experiments.subsets import nested_share, training_crops  # noqa: E402
from entire_id.experiments.training import check_training, train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores

STEPS = 13
SMALL = TrainConfig(
    datasets=("set",),
    model="tiny",
    size=(32, 16),
    p=3,
    k=2,
    steps=STEPS,
    learning_rate=0.05,
    label_smoothing=0.1,
    max_grad_norm=1.0,
    ema_decay=0.9,
    num_workers=0,
    log_every=1,
    checkpoint_every=4,
    device="cpu",
)
OPTIONS = "--model tiny --size 32x16 --p 3 --k 2 --learning-rate 0.05 --label-smoothing 0.1 --max-grad-norm 1"
OPTIONS += f" --ema-decay 0.9 --workers 0 --log-every 1 --checkpoint-every 4 --device cpu --steps {STEPS}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set `set` of 48 train crops of 6 people, and of 24 query and gallery crops; `other`, of other pictures."""
    home = tmp_path_factory.mktemp("experiments")
    names = [
        f"bounding_box_train/{pid:05d}_c{camid:03d}s0_{shot}.jpg"
        for pid in range(6)
        for camid in (0, 21)
        for shot in range(4)
    ]
    names += [
        f"{folder}/{pid:05d}_c{camid:03d}s0_{shot}.jpg"
        for pid in range(6)
        for camid in (0, 21)
        for folder, shot in (("query", 0), ("bounding_box_test", 1))
    ]
    for number, name in enumerate(("set", "other")):
        crops = write_crops(home / f"{name}-crops", names, first_seed=1000 * number)
        (crops / "cameras.csv").write_text(CAMERAS)
        pack_folder(crops, home / name, shard_rows=24)
    return home


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def metrics(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "loss" in name or name == "step"} for line in lines]


def result(out: Path) -> dict[str, Any]:
    """What must be the same of two runs, bit by bit."""
    state = {name: tensor.numpy().tobytes() for name, tensor in load_file(out / "checkpoint.safetensors").items()}
    return {"metrics": metrics(out), "state": state, "model": tree(out / "model")}


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train(SMALL, out)
    return out


# --- killed -----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from entire_id.experiments import training

config, out, last = training.TrainConfig(**eval(sys.argv[1])), sys.argv[2], int(sys.argv[3])

def watch(stage, done, total, note=""):
    if done == last:
        os.kill(os.getpid(), signal.SIGKILL)

training.train(config, out, watch)
"""


def run_until_killed(config: TrainConfig, out: Path, step: int) -> None:
    command = [sys.executable, "-c", KILLED, repr(dataclasses.asdict(config)), str(out), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


@pytest.fixture(scope="module")
def killed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after step 10, two steps after its second checkpoint."""
    out = tmp_path_factory.mktemp("killed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run_until_killed(SMALL, out, 10)
    return out


def test_a_run_that_is_killed_ends_with_the_same_bits(whole: Path, killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "lo')  # a line that was torn
    report = train(SMALL, tmp_path / "run")
    assert (report.num_resumed, report.steps, report.num_people) == (8, STEPS, 6)
    assert result(tmp_path / "run") == result(whole)


class StoppedError(Exception):
    """Ctrl-C, as far as training can tell."""


def run_until_stopped(config: TrainConfig, out: Path, last: int) -> None:
    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if done == last:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(config, out, stop)


@pytest.mark.parametrize("last", [2, 4, 12])
def test_a_run_that_is_stopped_anywhere_does_so_too(whole: Path, tmp_path: Path, last: int) -> None:
    run_until_stopped(SMALL, tmp_path / "run", last)
    assert train(SMALL, tmp_path / "run").num_resumed == last // 4 * 4
    assert result(tmp_path / "run") == result(whole)


def test_a_run_of_a_stream_does_so_too(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, stream=True, steps=9)
    train(config, tmp_path / "whole")
    run_until_stopped(config, tmp_path / "run", 6)
    assert train(config, tmp_path / "run").num_resumed == 4
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_workers_change_nothing(whole: Path, tmp_path: Path) -> None:
    train(dataclasses.replace(SMALL, num_workers=2), tmp_path / "run")
    assert result(tmp_path / "run") == result(whole)


def test_a_complete_run_is_left_alone(whole: Path) -> None:
    before = tree(whole)
    told: list[str] = []
    report = train(SMALL, whole, tell=told.append)
    assert tree(whole) == before
    assert (report.num_resumed, report.num_people, report.metrics) == (STEPS, 6, {})
    assert told[1].endswith(f"is complete: all of {STEPS} steps")


def test_a_complete_run_reads_no_crops(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "set", tmp_path / "mine")
    config = dataclasses.replace(SMALL, datasets=(str(tmp_path / "mine"),), steps=1)
    first = train(config, tmp_path / "run")
    for folder in ("meta", "data"):
        shutil.rmtree(tmp_path / "mine" / folder)
    again = train(config, tmp_path / "run")
    assert (again.model, again.num_people, again.num_resumed) == (first.model, first.num_people, 1)


@pytest.mark.parametrize("lost", ["", "labels.json", "trained.json", "model.safetensors"])
def test_a_network_that_was_removed_is_written_again(whole: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = tree(tmp_path / "run")
    path = tmp_path / "run" / "model" / lost
    path.unlink() if lost else shutil.rmtree(path)
    told: list[str] = []
    report = train(SMALL, tmp_path / "run", tell=told.append)
    assert tree(tmp_path / "run") == before
    assert (report.num_resumed, report.num_people, report.metrics) == (STEPS, 6, {})
    assert told[1].endswith("is complete: all of 13 steps; its network is written again")


def test_a_run_of_other_settings_is_refused_by_name(whole: Path) -> None:
    other = dataclasses.replace(SMALL, seed=1, steps=STEPS + 1)
    with pytest.raises(TrainingError, match=r"steps 13 there, 14 now; seed 0 there, 1 now\. Give the same settings"):
        train(other, whole)


def test_a_run_of_other_data_or_weights_is_refused(whole: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "set").symlink_to(home / "other")
    os.chdir(tmp_path)
    with pytest.raises(TrainingError, match="content .* there"):
        train(SMALL, whole)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="something else than a training"):
        train(SMALL, tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(OutputExistsError, match="not that of a training"):
        train(SMALL, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "config.json"}


@pytest.mark.parametrize("place", ["file/run", "file", "link", "link/run"])
def test_what_cannot_be_a_folder_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(OutputExistsError, match=r"/(file|link)' is no folder\. Name a new folder"):
        train(SMALL, tmp_path / place)


UNFIT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"datasets": ("nowhere",)}, FileNotFoundError, "nowhere"),
    ({"split": "val"}, SplitNotFoundError, "val"),
    ({"p": 7}, SamplingError, "6 identities .* cannot fill a batch of p 7"),
    ({"p": 7, "stream": True}, SamplingError, "6 identities .* cannot fill a batch of p 7"),
    ({"p": 7, "people_share": 0.5, "only_cameras": (21,)}, SamplingError, "3 identities"),
    ({"only_cameras": (5,)}, SelectionError, "no camera 5"),
    ({"only_cameras": (0,), "only_continents": ("europe",)}, SelectionError, "none of 48 crops is left"),
    ({"model": "vit-xl"}, ModelError, "no such model"),
    ({"model": "broken"}, ModelError, "has image_std"),
]


@pytest.mark.parametrize(("changes", "error", "message"), UNFIT)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(
    changes: dict[str, Any], error: type[Exception], message: str, home: Path, tmp_path: Path
) -> None:
    (home / "broken").mkdir(exist_ok=True)
    (home / "broken" / "config.json").write_text("{}")
    (home / "broken" / "preprocessor_config.json").write_text('{"image_std": 0}')
    config = dataclasses.replace(SMALL, **changes)
    with pytest.raises(error, match=message) as refused:
        train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(error) as foreseen:
        check_training(config, network=False)
    assert str(foreseen.value) == str(refused.value)


def test_a_network_that_cannot_be_made_is_foreseen(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, stride=17)
    check_training(config, network=False)
    with pytest.raises(ModelError, match="leave parts of crops") as foreseen:
        check_training(config)
    with pytest.raises(ModelError) as refused:
        train(config, tmp_path / "run")
    assert str(foreseen.value) == str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stream": True},
        {"side": "camera", "only_continents": ("asia",)},
        {"side": "continent", "people_share": 0.5},
        {"datasets": ("set", "other"), "p": 12},
        {"gradient_checkpointing": True},
    ],
)
def test_what_can_be_trained_passes_and_nothing_is_written(changes: dict[str, Any], home: Path) -> None:
    before, state = sorted(home.rglob("*")), torch.random.get_rng_state()
    check_training(dataclasses.replace(SMALL, **changes))
    assert sorted(home.rglob("*")) == before
    assert torch.equal(state, torch.random.get_rng_state())


def test_many_trainings_on_one_data_set_are_checked_by_its_manifest(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "other", tmp_path / "mine")
    config = dataclasses.replace(SMALL, datasets=(str(tmp_path / "mine"),))
    check_training(config, network=False)
    shutil.rmtree(tmp_path / "mine" / "meta")
    check_training(dataclasses.replace(config, only_cameras=(21,), people_share=0.5), network=False)
    with pytest.raises(SamplingError):
        check_training(dataclasses.replace(config, only_cameras=(21,), people_share=0.5, p=4), network=False)


def test_two_runs_do_not_share_a_folder(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "run")
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(TrainingError, match="another process trains into it"):
            train(SMALL, tmp_path / "run")
        other.kill()
    assert train(SMALL, tmp_path / "run").num_resumed == 8


@pytest.mark.parametrize("package", ["accelerate", "transformers", "torch.utils.tensorboard"])
def test_packages_that_are_missing_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package.split('.')[-1]} .* pip install 'entire-id\[train\]'"):
        train(SMALL, tmp_path / "run")


def test_a_damaged_checkpoint_is_named(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="it is damaged .* Move it away to begin anew"):
        train(SMALL, tmp_path / "run")


# --- several processes ------------------------------------------------------------------------------------------------


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]  # needs no GPU
ACCELERATE += ["--num_machines", "1", "--main_process_port", "0"]


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, timeout=300, env=environment
    )


def test_two_processes_train_together_and_go_on(tmp_path: Path) -> None:
    def train_line(out: Path) -> list[str]:
        return ["-m", "entire_id", "train", "set", "--out", str(out), *OPTIONS.split()]

    whole, out = tmp_path / "whole", tmp_path / "run"
    done = launch(*ACCELERATE, *train_line(whole))
    assert ended_well(done), done.stderr[-3000:]
    assert done.stderr.count("weights: random") == 1
    assert done.stdout.count("images_per_s") == 1
    assert json.loads((whole / "config.json").read_text())["num_processes"] == 2
    assert [line["step"] for line in metrics(whole)] == list(range(1, STEPS + 1))

    program = tmp_path / "program.py"
    program.write_text(KILLED.replace("done == last", "done == last and os.environ['RANK'] == '0'"))
    launch(*TORCHRUN, str(program), repr(dataclasses.asdict(SMALL)), str(out), "7")
    assert not (out / "model").exists()
    done = launch(*TORCHRUN, *train_line(out))
    assert ended_well(done), done.stderr[-3000:]
    assert "goes on after step 4 of 13 steps" in done.stderr
    assert result(out) == result(whole)


# --- what it leaves ---------------------------------------------------------------------------------------------------


def test_the_folder_tells_everything(whole: Path, home: Path) -> None:
    stated = json.loads((whole / "config.json").read_text())
    assert stated["settings"] == json.loads(json.dumps(dataclasses.asdict(SMALL)))
    manifest = entire_id.read_manifest(home / "set")
    facts = {"dataset": "entire-id", "version": "1.0.0", "content_sha256": manifest.content_sha256}
    assert stated["datasets"] == [{"place": "set", **facts}]
    assert stated["packages"]["torch"] == metadata.version("torch")
    (line, *_) = (json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines())
    assert {"step", "learning_rate", "identity_loss", "triplet_loss", "images_per_s", "waited"} < line.keys()
    assert not [path for path in whole.rglob("*") if "partial" in path.name]


def test_tensorboard_has_the_metrics(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in metrics(whole)}, rel=1e-6)


def test_torchs_generator_is_left_as_it_was(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    train(dataclasses.replace(SMALL, steps=1), tmp_path / "run")
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_average_is_kept_and_differs_from_the_weights(whole: Path) -> None:
    state, model = load_file(whole / "checkpoint.safetensors"), load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(model[name], state[f"average/module.{name}"]) for name in model)
    assert not torch.equal(model["classifier.weight"], state["network/classifier.weight"])


def test_the_command_line_embeds_with_what_was_trained(whole: Path, tmp_path: Path) -> None:
    def embed(*options: str) -> subprocess.CompletedProcess[str]:
        arguments = ["embed", "set", "--model", str(whole / "model"), "--features", str(tmp_path / "features")]
        return launch("entire_id", *arguments, *options)

    done = embed()
    assert "next: entire-id evaluate set" in done.stderr
    with entire_id.CropReader("set", "query") as reader:
        images = [reader.pixels(row) for row in range(len(reader))]
    expected = open_trained(whole / "model", "cpu")(images)
    np.testing.assert_allclose(np.load(tmp_path / "features" / "query.npy"), expected, atol=1e-5)
    with pytest.raises(ModelError, match=r"entire_id\.open_trained\(folder\) opens it"):
        entire_id.open_model(str(whole / "model"))
    done = embed("--size", "8x8")
    assert (done.returncode, "takes --device alone, not size" in done.stderr) == (2, True)


def test_the_folder_of_a_training_is_told_from_its_network(whole: Path, killed: Path) -> None:
    for opens in (entire_id.open_model, find_weights, open_trained):
        with pytest.raises(ModelError, match=r"the folder of a training; the network is '.*/run/model'"):
            opens(str(whole))
        with pytest.raises(ModelError, match=r"will be '.*/run/model', once all steps are done"):
            opens(str(killed))


@pytest.mark.parametrize("side", ["camera", "continent"])
def test_side_information_reaches_the_features(side: str, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, side=side, steps=2, side_scale=30.0)
    model = open_trained(train(config, tmp_path / "run").model, "cpu")
    assert model.column == {"camera": "camid", "continent": "continent"}[side]
    entire_id.embed("set", ["query"], model, tmp_path / "features")
    with entire_id.CropReader("set", "query") as reader:
        images = [reader.pixels(row) for row in range(len(reader))]
        values = reader.meta[model.column].to_pylist()
    assert len(set(values)) == 2
    found = np.load(tmp_path / "features" / "query.npy")
    np.testing.assert_allclose(found, model(images, values), atol=1e-5)
    assert np.abs(found - model(images)).max() > 1e-3
    pack_folder(Path("set-crops"), tmp_path / "elsewhere", name="elsewhere")
    entire_id.embed(tmp_path / "elsewhere", ["query"], model, tmp_path / "others")
    expected = {"camera": model(images), "continent": found}[side]
    np.testing.assert_allclose(np.load(tmp_path / "others" / "query.npy"), expected, atol=1e-5)


def test_several_data_sets_are_joined_and_weights_kept_on_the_way(tmp_path: Path) -> None:
    config = dataclasses.replace(
        SMALL, datasets=("set", "other"), steps=4, weights_every=2, gradient_checkpointing=True, stride=12, margin=0.3
    )
    report = train(config, tmp_path / "run")
    assert report.num_people == 12
    kept = sorted((tmp_path / "run" / "weights").iterdir())
    assert [path.name for path in kept] == ["step-0000000", "step-0000002", "step-0000004"]
    assert len({open_trained(path, "cpu").name.split(":")[1] for path in [*kept, report.model]}) == 3
    labels = entire_id.LabelMap.load(report.model / "labels.json")
    assert len(labels) == 12


def test_labels_of_joined_sets_say_the_same_wherever_these_lie(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "other", tmp_path / "elsewhere")
    labels = []
    for number, other in enumerate(("other", str(tmp_path / "elsewhere"))):
        config = dataclasses.replace(SMALL, datasets=("set", other), steps=1, ema_decay=0.0)
        labels.append((train(config, tmp_path / f"run-{number}").model / "labels.json").read_text())
    assert labels[0] == labels[1]
    assert json.loads(labels[0])["numbering"] == "entire-id: (train) + 0, entire-id-2: (train) + 1000000"


def test_a_set_and_its_copy_are_not_joined(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "set", tmp_path / "copy")
    for datasets in (("set", "./set"), ("set", "other", str(tmp_path / "copy"))):
        config = dataclasses.replace(SMALL, datasets=datasets)
        for check in (lambda config: train(config, tmp_path / "run"), check_training):
            with pytest.raises(SelectionError, match=r"the same content as 'set', .* name one of the two"):
                check(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stream", [False, True])
def test_train_and_val_are_trained_on_together(msmt: Path, stream: bool, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, datasets=(str(msmt),), split="train+val", stream=stream, steps=1)
    assert train(config, tmp_path / "run").num_people == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["split"] == "train+val"
    assert training_crops(config, str(msmt))["crops"] == 12 + 6
    if not stream:
        assert training_crops(dataclasses.replace(config, people_share=0.3), str(msmt))["crops"] == 4 + 2
    with pytest.raises(SelectionError, match=r"Open train and query by themselves, then entire_id\.join"):
        train(dataclasses.replace(config, split="train+query"), tmp_path / "none")


def test_workers_leave_ctrl_c_to_the_process_that_trains(tmp_path: Path) -> None:
    ignored: list[int] = []

    def look(*_: object) -> None:
        for child in Path("/proc/self/task").glob("*/children"):
            for pid in child.read_text().split():
                status = Path("/proc", pid, "status").read_text()
                ignored.append(int(re.search(r"^SigIgn:\s*(\w+)$", status, re.M)[1], 16) >> (signal.SIGINT - 1) & 1)

    train(dataclasses.replace(SMALL, num_workers=1, steps=2), tmp_path / "run", look)
    assert 1 in ignored


def test_a_set_without_val_gives_its_train_part_and_that_is_told(msmt: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, datasets=("set", str(msmt)), split="train+val", steps=1)
    told: list[str] = []
    assert train(config, tmp_path / "run", tell=told.append).num_people == 6 + 3
    assert [text for text in told if " val " in text] == ["set has no val part: it is trained on train"]
    with pytest.raises(SplitNotFoundError, match="val"):
        train(dataclasses.replace(config, datasets=("set",), split="val"), tmp_path / "none")


def test_weights_of_another_model_are_a_start(whole: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    told: list[str] = []
    config = dataclasses.replace(SMALL, model=str(tmp_path / "vit"), steps=1)
    train(config, tmp_path / "run", tell=told.append)
    assert told[0].startswith("weights: vit@sha256:")


def test_a_training_is_gone_on_with_for_other_people(whole: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = dataclasses.replace(SMALL, model=str(whole / "model"), datasets=("other",), steps=1, learning_rate=1e-9)
    train(dataclasses.replace(config, ema_decay=0), tmp_path / "run", tell=told.append)
    assert told[0].startswith(f"weights: {whole.name}/model@sha256:")
    before, after = (load_file(run / "model" / "model.safetensors") for run in (whole, tmp_path / "run"))
    taken_over = [name for name in before if name != "classifier.weight" and not name.startswith("neck.running")]
    assert len(taken_over) > 10
    for name in taken_over:
        if before[name].is_floating_point():
            assert torch.allclose(before[name], after[name], atol=1e-6), name
    assert not torch.allclose(before["classifier.weight"], after["classifier.weight"], atol=1e-4)


def test_what_was_trained_on_crops_of_another_size_is_refused(whole: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, model=str(whole / "model"), size=(48, 16))
    with pytest.raises(ModelError, match=r"trained with size \(32, 16\), and is to go on with \(48, 16\)"):
        train(config, tmp_path / "run")


def test_losses_that_explode_stop_it(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(TrainingError, match="the loss is .* at step .* Try a lower learning_rate"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_a_process_trains_in_one_precision(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="refuses precision 'bf16' .* start another"):
        train(dataclasses.replace(SMALL, precision="bf16"), tmp_path / "run")
    done = launch(
        "entire_id", "train", "set", "--out", str(tmp_path / "run"), *OPTIONS.split(), "--precision", "bf16", "--json"
    )
    assert done.returncode == 0, done.stderr
    exact, rounded = ([line["loss"] for line in metrics(run)] for run in (whole, tmp_path / "run"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.1)
    assert json.loads(done.stdout)["loss"] == rounded[-1]
    assert load_file(tmp_path / "run" / "model" / "model.safetensors")["classifier.weight"].dtype == torch.float32


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ()}, "nothing to train on"),
        ({"datasets": ("a", "a")}, "name one twice"),
        ({"p": 1}, "p 1 is below 2"),
        ({"size": (0, 5)}, r"size \(0, 5\) is below 1"),
        ({"warmup": 1.0}, r"not in \[0, 1\)"),
        ({"side": "night"}, "side 'night' is not one of none, camera, continent"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"learning_rate": 0.0}, "not above 0"),
        ({"std": (0.0, 0.5, 0.5)}, r"std \(0\.0, 0\.5, 0\.5\) is not above 0"),
        ({"stream": True, "datasets": ("a", "b")}, "stream reads one data set"),
        ({"side": "camera", "datasets": ("a", "b")}, "needs one data set"),
        ({"side": "continent", "stream": True}, "which a stream does not"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("share", "num_values", "expected"), [(0.07, 100, 7), (0.28, 25, 7), (0.281, 25, 8), (1e-5, 9, 1), (1, 9, 9)]
)
def test_a_share_is_the_one_that_is_written(share: float, num_values: int, expected: int) -> None:
    assert len(nested_share(range(num_values), share, seed=0)) == expected


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(datasets=("d",), steps=1000, warmup=0.1)
    rates = np.array([learning_rate(config, step) for step in range(1000)]) / config.learning_rate
    assert rates[0] == pytest.approx(0.01)
    assert (np.diff(rates[:101]) > 0).all()
    np.testing.assert_allclose(np.diff(rates[:101]), 0.0099)
    assert rates[100] == 1
    assert (np.diff(rates[100:]) < 0).all()
    assert rates[-1] == pytest.approx(0.002)
