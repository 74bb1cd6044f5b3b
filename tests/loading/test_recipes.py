"""What docs/training.md says of its recipes for trainers: which batches they show, and how they go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import entire_id

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # torch, of Lightning
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning"),  # Lightning, of going on
]

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BATCHES_PER_EPOCH = 2  # 24 crops of 4 people in groups of 4


def run_recipe(line: str) -> dict[str, Any]:
    """Run the snippet that has this line, and return its names."""
    (code,) = (code for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if line in code)
    names: dict[str, Any] = {}
    exec(compile(code, "snippet", "exec"), names)
    return names


def sampled(seed: int, num_epochs: int) -> list[list[int]]:
    sampler = entire_id.PKSampler(entire_id.CropDataset("entire-id", "gallery").pids, 4, 4, seed=seed)
    return [rows for _ in range(num_epochs) for rows in sampler]


def new_stream() -> entire_id.PKStream:
    return entire_id.PKStream("entire-id", "gallery", 4, 4, transform=entire_id.EvalTransform(16, 8))


def streamed(num_epochs: int) -> list[list[int]]:
    stream, found = new_stream(), []
    for epoch in range(num_epochs):
        stream.set_epoch(epoch)
        found += [batch["row"].tolist() for batch in stream]
    return found


@pytest.fixture(autouse=True)
def _at_home(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed.parent)


# --- loops of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sampler", "stream"])
def test_a_loop_goes_on_in_the_epoch_of_its_state(kind: str) -> None:
    place = Path(f"{kind}.json")
    whole = run_recipe(place.name)
    assert (whole["epoch"], whole["num_done"]) == (1, json.loads(place.read_text())["num_batches"])
    place.write_text(json.dumps(whole[kind].state_dict(1)))
    rest = run_recipe(place.name)
    assert (rest["first_epoch"], rest["epoch"], rest["num_done"]) == (1, 1, whole["num_done"] - 1)


def test_crops_and_a_stream_of_a_selection_share_their_labels() -> None:
    names = run_recipe("labels=labels")
    assert names["stream"].label_map == names["asia"].label_map == names["labels"]
    label_of = dict(zip(names["crops"].pids.tolist(), names["crops"].labels.tolist(), strict=True))
    (batch, *_) = names["stream"]
    assert batch["label"].tolist() == [label_of[pid] for pid in batch["pid"].tolist()]


# --- the Trainer of transformers --------------------------------------------------------------------------------------


@pytest.fixture
def trainer_names() -> dict[str, Any]:
    """Names of the recipe; its model notes in `shown` which rows it is given."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    names = run_recipe("import Trainer")
    shown: list[list[int]] = []
    collate = names["collate"]

    class Noting(names["Classifier"]):
        def forward(self, image, label, row, **_):
            shown.append(row.tolist())
            return super().forward(image, label)

    names["collate"] = lambda crops: collate(crops) | {"row": torch.tensor([crop["row"] for crop in crops])}
    return names | {"model": Noting(4), "shown": shown}


def test_trainer_shows_every_epoch_and_goes_on_where_a_checkpoint_is(trainer_names: dict[str, Any]) -> None:
    names, shown = trainer_names, trainer_names["shown"]
    arguments = names["TrainingArguments"](
        "kept", num_train_epochs=3, save_steps=1, seed=7, report_to="none", disable_tqdm=True
    )
    names["PKTrainer"](names["model"], arguments, train_dataset=names["crops"]).train()
    whole = sampled(seed=7, num_epochs=3)
    assert shown == whole
    for step in (BATCHES_PER_EPOCH + 1, 2 * BATCHES_PER_EPOCH):  # amid an epoch, and between two
        shown.clear()
        trainer = names["PKTrainer"](names["model"], arguments, train_dataset=names["crops"])
        trainer.train(resume_from_checkpoint=f"kept/checkpoint-{step}")
        assert shown == whole[step:]


def test_trainer_shows_one_epoch_of_a_stream_after_another(trainer_names: dict[str, Any]) -> None:
    names = trainer_names

    class StreamTrainer(names["Trainer"]):
        def get_train_dataloader(self):
            loader = torch.utils.data.DataLoader(self.train_dataset, batch_size=None)
            loader.set_epoch = self.train_dataset.set_epoch
            return loader

    arguments = names["TrainingArguments"]("kept", max_steps=5, save_strategy="no", report_to="none", disable_tqdm=True)
    StreamTrainer(names["model"], arguments, train_dataset=new_stream()).train()
    assert names["shown"] == streamed(num_epochs=3)[:5]


# --- Lightning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def classifier() -> type:
    """The class of the recipe; it notes in `shown` which rows it is given."""
    pytest.importorskip("lightning")

    class Noting(run_recipe("import lightning")["Classifier"]):
        def __init__(self):
            super().__init__()
            self.shown = []

        def training_step(self, batch):
            self.shown.append(batch["row"].tolist())
            return super().training_step(batch)

    return Noting


def fit(model: Any, max_epochs: int, checkpoint: Path | None = None) -> list[list[int]]:
    import lightning

    trainer = lightning.Trainer(
        max_epochs=max_epochs,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, ckpt_path=checkpoint)
    return model.shown


def test_lightning_shows_every_epoch_and_goes_on_with_the_next(classifier: type) -> None:
    whole = sampled(seed=0, num_epochs=3)
    (checkpoint,) = Path("checkpoints").glob("*.ckpt")  # of the two epochs of the recipe
    assert fit(classifier(), 3) == whole
    assert fit(classifier(), 3, checkpoint) == whole[2 * BATCHES_PER_EPOCH :]


def test_lightning_does_the_same_with_a_stream(classifier: type) -> None:
    class OfStream(classifier):
        def train_dataloader(self):
            self.stream = new_stream()
            self.stream.set_epoch(self.trainer.fit_loop.epoch_progress.current.ready)
            return torch.utils.data.DataLoader(self.stream, batch_size=None)

    whole = streamed(num_epochs=3)
    (checkpoint,) = Path("checkpoints").glob("*.ckpt")
    assert fit(OfStream(), 3) == whole
    assert fit(OfStream(), 3, checkpoint) == whole[2 * BATCHES_PER_EPOCH :]
