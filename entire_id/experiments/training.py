"""A training from its settings to a folder of results, killed and gone on with at any step."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from entire_id.errors import MissingExtraError, ModelError, TrainingError
from entire_id.experiments.checkpoints import Checkpoint, read_checkpoint, read_step, write_checkpoint
from entire_id.experiments.config import TrainConfig, Triple, claim_run, find_run, learning_rate
from entire_id.experiments.losses import identity_loss, triplet_loss
from entire_id.experiments.network import (
    NetworkFacts,
    ReidNetwork,
    Weights,
    find_weights,
    new_network,
    normalisation,
    save_trained,
)
from entire_id.experiments.subsets import check_batches, find_selection, open_training, training_split
from entire_id.loading.files import open_files
from entire_id.loading.index import ShardIndex, fetch_manifest
from entire_id.loading.integers import count_values
from entire_id.loading.models import first_line, is_trained
from entire_id.loading.sampler import PKSampler
from entire_id.loading.selection import LabelMap
from entire_id.loading.stream import PKStream
from entire_id.loading.transforms import TrainTransform
from entire_id.records import Progress, no_progress
from entire_id.staging import alone, append_line, new_folder, rewrite, sync

__all__ = ["TrainReport", "check_training", "train"]

_CHECKPOINT, _METRICS, _LABELS, _MODEL = "checkpoint.safetensors", "metrics.jsonl", "labels.json", "model"
_MOMENTUM = "momentum_buffer"


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did.

    Attributes:
        model: folder of the network, for `open_trained`.
        steps: steps that are done, all runs together.
        num_resumed: how many of them earlier runs had done.
        num_people: people that were trained on.
        metrics: last line of the log; empty where nothing was left to do.
    """

    model: Path
    steps: int
    num_resumed: int
    num_people: int
    metrics: Mapping[str, float]


def _silent(text: str) -> None:
    """Tell nobody."""


def train(
    config: TrainConfig, out: str | Path, progress: Progress = no_progress, tell: Callable[[str], None] = _silent
) -> TrainReport:
    """Train, and return what was done; the same call goes on after the last checkpoint of a run that was stopped.

    A run that is complete is left as it is, but for a `model` that is missing: it is written again. A training that
    cannot be begun leaves no folder.

    `out` holds `config.json` (every setting, versions of packages, content of the data), `metrics.jsonl` and events of
    TensorBoard, `checkpoint.safetensors`, and in the end `model`. Afterwards torch's generators are as they were.

    In a process of several, started by `accelerate launch` or `torchrun`, all of them call this; the first one writes.
    On the CPU a run that went on has the bits of one that was never stopped, given as many threads and processes.

    Args:
        config: all settings.
        out: folder to make, or of the run to go on with.
        progress: told how far it is.
        tell: told in sentences what cannot be seen from the settings, such as that weights are random.

    Raises:
        MissingExtraError: a package that trains is not installed.
        TrainingError: `out` holds a training of other settings, another process trains into it, the loss is not finite,
            or this process has trained in another precision.
        OutputExistsError: `out` holds something else, or cannot be a folder.
        ModelError: the model cannot be opened, or cannot take such crops.
        DatasetNotFoundError, RepositoryNotFoundError, SplitNotFoundError, ManifestError, DownloadError: see
            `CropDataset`.
        SelectionError: no crop is left, or two of the data sets have the same content.
        SamplingError: there are too few people for a batch, or the state does not fit the number of processes.
        CorruptCropError, ImageDecodeError: a crop is corrupt.
    """
    accelerate, writer_of = _packages()
    is_cpu = config.device == "cpu" or not torch.cuda.is_available()
    try:
        accelerator = accelerate.Accelerator(mixed_precision=config.precision, cpu=is_cpu)
    except ValueError as error:
        what = f"accelerate refuses precision {config.precision!r} ({first_line(error)})"
        raise TrainingError(out, f"{what}. A process trains in one precision; start another for this one") from error
    if not accelerator.is_main_process:
        progress, tell = no_progress, _silent
    with accelerator.main_process_first():  # what is downloaded, the first one downloads
        start = _find_start(config)
    out, device = Path(out), accelerator.device
    if accelerator.is_main_process:
        find_run(out, config, start.facts)
    accelerator.wait_for_everyone()
    tell(start.weights.summary())
    for place in start.where:
        if (split := training_split(config, place)) != config.split.replace(" ", ""):
            tell(f"{place} has no val part: it is trained on {split}")
    if done := _find_done(config, out):
        tell(f"{out} is complete: all of {config.steps:,} steps")
        return done
    with torch.random.fork_rng([] if is_cpu else [device.index or 0]):
        torch.manual_seed(config.seed)
        source = _Source(start, device)
        network = start.network(len(source.label_map), source.side_values)
        if accelerator.is_main_process:  # by now all is open that could be missing
            notes = {"datasets": start.places, "num_processes": accelerator.num_processes, "device": str(device)}
            claim_run(out, config, start.facts, notes)
        accelerator.wait_for_everyone()
        refusal = TrainingError(out, "another process trains into it. Wait for it, or name a new folder")
        with alone(out, refusal) if accelerator.is_main_process else nullcontext():
            training = _Training(config, out, accelerator, source, network)
            if training.num_done == config.steps:
                return training.restore_model(tell)
            return training.run(writer_of, progress, tell)


def check_training(config: TrainConfig, out: str | Path | None = None, *, network: bool = True) -> None:
    """Raise what `train` would raise for the packages, folder, weights, data sets, batches and network; write nothing.

    Of a data set that was looked at before, only the manifest is read again. What depends on the crops' pixels, the GPU
    or the number of processes is not looked at. Afterwards torch's generators are as they were.

    Args:
        config: all settings.
        out: folder of the run, where that is looked at, too.
        network: make the network, too, on the CPU: what takes longest with large ones.

    Raises:
        See `train`.
    """
    _packages()
    start = _find_start(config)
    if out is not None:
        find_run(Path(out), config, start.facts)
    side_values: tuple[int | str, ...] = ()
    if config.stream:
        num_people = len(_open_stream(config, start.where[0]).label_map)
    else:
        index = check_batches(config, start.where)
        num_people, (side_values, _) = len(count_values(index.pids)[0]), _sides(config, index)
    if network:
        with torch.random.fork_rng([]):
            start.network(num_people, side_values)


def _packages() -> tuple[Any, Any]:
    try:
        import accelerate
    except ImportError as error:
        raise MissingExtraError("accelerate", "training", "train") from error
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "training", "train") from error
    return accelerate, SummaryWriter


@dataclass(frozen=True, slots=True)
class _Start:
    """What a training begins with.

    Attributes:
        config: all settings.
        weights: what the network begins with.
        places: facts of each data set.
        mean: of the channels.
        std: of the channels.
    """

    config: TrainConfig
    weights: Weights
    places: Sequence[Mapping[str, str]]
    mean: Triple
    std: Triple

    @property
    def facts(self) -> dict[str, Any]:
        """What the result depends on, besides the settings."""
        return {"weights": self.weights.identity, "content": [place["content_sha256"] for place in self.places]}

    @property
    def where(self) -> list[str]:
        """Where the data sets lie."""
        return [place["place"] for place in self.places]

    def transform(self) -> TrainTransform:
        """Return what is done to crops."""
        config = self.config
        options: dict[str, Any] = {"flip": config.flip, "pad": config.pad, "erase": config.erase}
        return TrainTransform(*config.size, **options, mean=self.mean, std=self.std)

    def network(self, num_people: int, side_values: tuple[int | str, ...]) -> ReidNetwork:
        """Return the network; what has no weights is drawn from torch's generator. Raises as `new_network` does."""
        config = self.config
        side_of = self.places[0]["dataset"] if config.side == "camera" else ""
        side = (config.side, side_of, side_values, config.side_scale)
        shape = NetworkFacts(config.size, self.mean, self.std, config.stride, *side, config.test_feature, num_people)
        network = new_network(self.weights, shape)
        if config.gradient_checkpointing:
            _checkpoint_activations(network)
        return network


def _find_start(config: TrainConfig) -> _Start:
    weights = find_weights(config.model, config.revision)
    return _Start(config, weights, [_place(path) for path in config.datasets], *normalisation(config, weights))


def _find_done(config: TrainConfig, out: Path) -> TrainReport | None:
    """Return what a run did that is complete; None if steps are left, or its network is not there as a whole."""
    model, checkpoint = out / _MODEL, out / _CHECKPOINT
    # A checkpoint takes much room, and may be removed in the end: then the log tells.
    if (read_step(checkpoint) if checkpoint.exists() else _last_step(out / _METRICS)) < config.steps:
        return None
    if not is_trained(str(model)) or not any(model.glob("*.safetensors")):
        return None
    try:
        num_people = len(LabelMap.load(model / _LABELS))
    except (OSError, ValueError):
        return None
    return TrainReport(model, config.steps, config.steps, num_people, {})


def _place(path: str) -> dict[str, str]:
    """Return the facts of a data set: where it lies, with the commit on the Hub, and what it is called and holds."""
    files = open_files(path)
    manifest = fetch_manifest(files)
    name = path if files.is_local else files.name
    facts = {"dataset": manifest.name, "version": manifest.version, "content_sha256": manifest.content_sha256}
    return {"place": name, **facts}


# --- batches ----------------------------------------------------------------------------------------------------------


class _Source:
    """Batches for one process, and where their epoch stands.

    Attributes:
        label_map: which class a person is.
        side_values: cameras or continents of the data, sorted, where the network is told of them.
        waited_s: how long the loader made the loop wait, in all.
    """

    def __init__(self, start: _Start, device: torch.device) -> None:
        config, self._device, self.waited_s = start.config, device, 0.0
        options: dict[str, Any] = {"num_workers": config.num_workers, "persistent_workers": config.num_workers > 0}
        options["worker_init_fn"] = _leave_interrupts
        options["pin_memory"] = device.type == "cuda"
        self.side_values: tuple[int | str, ...] = ()
        self._side: npt.NDArray[np.int64] | None = None  # of each row, its place in side_values
        self._place: PKSampler | PKStream
        self._loader: DataLoader[Any]
        if config.stream:
            stream = _open_stream(config, start.where[0], start.transform())
            self._place, self.label_map = stream, stream.label_map
            self._loader = DataLoader(stream, batch_size=None, **options)
            return
        crops, sampler = open_training(config, start.where, start.transform())
        self._place, self.label_map = sampler, crops.label_map
        self._loader = DataLoader(crops, batch_sampler=sampler, **options)  # type: ignore[arg-type]
        self.side_values, self._side = _sides(config, crops.index)

    def go_on(self, state: Mapping[str, Any]) -> int:
        """Go to where `state` was taken, and return the number of its epoch."""
        self._place.load_state_dict(state)
        return int(state["epoch"])

    def state(self, num_done: int) -> dict[str, Any]:
        """Return where the epoch stands once `num_done` of its batches, as `batches` counts them, are done."""
        return self._place.state_dict(num_done)

    def batches(self, epoch: int) -> Generator[tuple[int, _Batch]]:
        """Yield batches without end, from `epoch` on, each with its number in what is iterated of its epoch."""
        while True:
            self._place.set_epoch(epoch)
            asked_s = time.monotonic()
            for num_done, batch in enumerate(self._loader, start=1):
                made = self._made(batch)
                self.waited_s += time.monotonic() - asked_s
                yield num_done, made
                asked_s = time.monotonic()
            epoch += 1

    def _made(self, batch: Mapping[str, Any]) -> _Batch:
        images, labels, rows = (torch.as_tensor(batch[name]) for name in ("image", "label", "row"))
        side = None if self._side is None else torch.from_numpy(self._side[rows.numpy()]).to(self._device)
        return _Batch(images.to(self._device, non_blocking=True), labels.to(self._device), side)


def _open_stream(config: TrainConfig, place: str, transform: TrainTransform | None = None) -> PKStream:
    select = find_selection(config, place)
    who = (config.p, config.k)
    return PKStream(place, training_split(config, place), *who, seed=config.seed, select=select, transform=transform)


def _sides(config: TrainConfig, index: ShardIndex) -> tuple[tuple[int | str, ...], npt.NDArray[np.int64] | None]:
    """Return cameras or continents, sorted, and of each row (n,) its place among them, if the network is told them."""
    if config.side == "camera":
        values, rows = np.unique(index.camids, return_inverse=True)
        return tuple(values.tolist()), rows
    if config.side == "continent":
        numbers, rows = np.unique(index.continents, return_inverse=True)
        return tuple(index.continent_names[number] for number in numbers.tolist()), rows
    return (), None


def _leave_interrupts(_: int) -> None:
    """Leave Ctrl-C to the process that trains: a worker that it hits while it holds a lock makes all wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Pixels (n, 3, h, w), classes (n,) and, where the network is told of them, places in `side_values` (n,)."""

    images: torch.Tensor
    labels: torch.Tensor
    side: torch.Tensor | None


# --- steps ------------------------------------------------------------------------------------------------------------


class _Training:
    """A network on its way; the first process alone writes."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        accelerator: Any,  # noqa: ANN401 accelerate has no types here
        source: _Source,
        network: ReidNetwork,
    ) -> None:
        self.config, self.out, self.accelerator, self.source = config, out, accelerator, source
        self.network = network.to(accelerator.device)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.average: AveragedModel | None = None
        if config.ema_decay:
            averaging = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True)
        self.sgd = torch.optim.SGD(
            self.parameters, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.prepared, self.optimizer = accelerator.prepare(self.network, self.sgd)
        self.num_done, self.epoch = 0, 0
        if checkpoint := read_checkpoint(out / _CHECKPOINT):
            self._go_on(checkpoint)

    def run(self, writer_of: Any, progress: Progress, tell: Callable[[str], None]) -> TrainReport:  # noqa: ANN401
        """Take the steps that are left."""
        config, num_resumed = self.config, self.num_done
        if num_resumed:
            tell(f"{self.out} goes on after step {num_resumed:,} of {config.steps:,} steps")
        log = _Log(self.out, num_resumed, writer_of) if self.accelerator.is_main_process else None
        if config.weights_every and not num_resumed and log is not None:
            self._keep_weights()
        last: dict[str, float] = {}
        tally = _Tally(self.accelerator, self.source)
        batches = self.source.batches(self.epoch)
        for step in range(num_resumed, config.steps):
            num_done, batch = next(batches)
            tally.add(self._step(step, batch), len(batch.labels))
            self.num_done = step + 1
            is_last, keeps = self.num_done == config.steps, _is_due(self.num_done, config.weights_every)
            saves = is_last or keeps or _is_due(self.num_done, config.checkpoint_every)
            # The sums begin anew with every checkpoint, so that a run that goes on from it has the same lines.
            if saves or _is_due(self.num_done, config.log_every):
                last = {"step": self.num_done, "learning_rate": learning_rate(config, step), **tally.means()}
                self._check_finite(last)
                if log is not None:
                    log.write(last)
            if saves and log is not None:
                if keeps:
                    self._keep_weights()
                if is_last:
                    self._save_model(self.out / _MODEL)
                write_checkpoint(self.out / _CHECKPOINT, self._checkpoint(self.source.state(num_done)))
            progress("training", self.num_done, config.steps, f"loss {last['loss']:.3f}" if last else "")
        batches.close()
        if log is not None:
            log.close()
        self.accelerator.wait_for_everyone()
        return TrainReport(self.out / _MODEL, config.steps, num_resumed, len(self.source.label_map), last)

    def restore_model(self, tell: Callable[[str], None]) -> TrainReport:
        """Write the network of a run that is complete, and return what it did: somebody removed it."""
        num_steps = self.config.steps
        tell(f"{self.out} is complete: all of {num_steps:,} steps; its network is written again")
        if self.accelerator.is_main_process:
            self._save_model(self.out / _MODEL)
        self.accelerator.wait_for_everyone()
        return TrainReport(self.out / _MODEL, num_steps, num_steps, len(self.source.label_map), {})

    def _step(self, step: int, batch: _Batch) -> torch.Tensor:
        """Take one step, and return (3,) its loss, and the identity and the triplet loss that it is made of."""
        config = self.config
        # What dropout draws follows from seed, step and rank, wherever the run began.
        torch.manual_seed(_step_seed(config.seed, step, self.accelerator.process_index))
        for group in self.sgd.param_groups:
            group["lr"] = learning_rate(config, step)
        features, logits = self.prepared(batch.images, batch.side)
        identity = identity_loss(logits, batch.labels, config.label_smoothing)
        triplet = triplet_loss(features, batch.labels, config.margin)
        self.optimizer.zero_grad()
        loss = config.id_weight * identity + config.triplet_weight * triplet
        self.accelerator.backward(loss)
        if config.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return torch.stack([loss, identity, triplet]).detach()

    def _check_finite(self, metrics: Mapping[str, float]) -> None:
        if not math.isfinite(metrics["loss"]):
            what = f"the loss is {metrics['loss']} at step {self.num_done:,}"
            raise TrainingError(self.out, f"{what}. Try a lower learning_rate, or max_grad_norm 1, in a new folder")

    def _keep_weights(self) -> None:
        self._save_model(self.out / "weights" / f"step-{self.num_done:07d}")

    def _save_model(self, folder: Path) -> None:
        """Write the network, or its moving average, with its labels, to a folder that may be there from before."""
        network = self.network if self.average is None else self.average.module
        with new_folder(folder, replaces=lambda _: True) as tree:
            save_trained(self.network, tree, network.state_dict())
            self.source.label_map.save(tree / _LABELS)
            for path in tree.iterdir():
                sync(path)

    # --- where it stands ---

    def _checkpoint(self, loading: Mapping[str, Any]) -> Checkpoint:
        groups: dict[str, Mapping[str, torch.Tensor]] = {"network": self.network.state_dict()}
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        momenta = {
            str(number): self.sgd.state[parameter][_MOMENTUM]
            for number, parameter in enumerate(self.parameters)
            if self.sgd.state[parameter].get(_MOMENTUM) is not None
        }
        groups["momentum"] = momenta
        scaler = {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        tensors = {f"{group}/{name}": value for group, members in groups.items() for name, value in members.items()}
        return Checkpoint(self.num_done, loading, scaler, tensors)

    def _go_on(self, checkpoint: Checkpoint) -> None:
        """Put everything where it was."""
        self.network.load_state_dict(checkpoint.group("network"))
        if self.average is not None:
            self.average.load_state_dict(checkpoint.group("average"))
        for number, momentum in checkpoint.group("momentum").items():
            self.sgd.state[self.parameters[int(number)]][_MOMENTUM] = momentum.to(self.accelerator.device)
        if self.accelerator.scaler is not None and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(dict(checkpoint.scaler))
        self.num_done, self.epoch = checkpoint.step, self.source.go_on(checkpoint.loading)


def _checkpoint_activations(network: ReidNetwork) -> None:
    try:
        network.backbone.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(type(network.backbone).__name__, f"{error} Leave gradient_checkpointing out") from error


def _is_due(num_done: int, every: int) -> bool:
    return every > 0 and num_done % every == 0


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed in 64 bits that depends on all three."""
    return xxhash.xxh3_64_intdigest(f"{seed} {step} {rank}".encode())


# --- the log ----------------------------------------------------------------------------------------------------------


class _Tally:
    """Means over the steps since they were last asked for, over all processes."""

    def __init__(self, accelerator: Any, source: _Source) -> None:  # noqa: ANN401 accelerate has no types here
        self._accelerator, self._source = accelerator, source
        self._begin()

    def _begin(self) -> None:
        self._sums = torch.zeros(3, device=self._accelerator.device)
        self._num_steps, self._num_images = 0, 0
        self._start_s, self._waited_s = time.monotonic(), self._source.waited_s

    def add(self, losses: torch.Tensor, num_images: int) -> None:
        """Add the losses of a step, (3,). The sums stay on the device: to look at them would make it wait."""
        self._sums += losses
        self._num_steps += 1
        self._num_images += num_images

    def means(self) -> dict[str, float]:
        """Return the losses, images a second of all processes, and the share of the time that the loader made wait."""
        loss, identity, triplet = (self._accelerator.reduce(self._sums, "mean") / self._num_steps).tolist()
        spent_s = max(time.monotonic() - self._start_s, 1e-9)
        speed = self._num_images * self._accelerator.num_processes / spent_s
        waited = (self._source.waited_s - self._waited_s) / spent_s
        self._begin()
        losses = {"loss": loss, "identity_loss": identity, "triplet_loss": triplet}
        return losses | {"images_per_s": round(speed, 2), "waited": round(waited, 4)}


class _Log:
    """A line of JSON and events of TensorBoard for each of the metrics; lines after `step` are of a run that died."""

    def __init__(self, out: Path, step: int, writer_of: Any) -> None:  # noqa: ANN401 tensorboard may be missing
        self._path = out / _METRICS
        rewrite(self._path, lambda text: _lines_until(text, step))
        self._events = writer_of(str(out), purge_step=step + 1)

    def write(self, metrics: Mapping[str, float]) -> None:
        append_line(self._path, json.dumps(metrics))
        for name, value in metrics.items():
            if name != "step":
                self._events.add_scalar(name, value, int(metrics["step"]))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def _last_step(path: Path) -> int:
    """Return the step of the last whole line of a log, 0 where there is none."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    try:
        return int(json.loads(lines[-1])["step"])
    except (IndexError, ValueError, KeyError, TypeError):
        return 0


def _lines_until(text: bytes, step: int) -> bytes:
    """Return the whole lines of steps up to `step`."""
    lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
    return b"".join(line for line in lines if json.loads(line)["step"] <= step)
