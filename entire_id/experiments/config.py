"""Every setting of a training, in one frozen value, and what is kept of it beside the result."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from entire_id.errors import OutputExistsError, TrainingError
from entire_id.staging import rewrite

__all__ = ["SHAPES", "Precision", "Side", "TrainConfig", "Triple", "claim_run", "find_run", "learning_rate"]

Side = Literal["none", "camera", "continent"]
"""What the network is told of a crop besides its pixels."""

Precision = Literal["no", "fp16", "bf16"]
"""Type that accelerate computes in; `no` is float32."""

Triple = tuple[float, float, float]

SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192},
    "vit-ti": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "vit-s": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "vit-b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
"""Vision transformers that are made anew, with random weights: those of A. Dosovitskiy et al., "An Image is Worth 16x16
Words", ICLR 2021 (B), of H. Touvron et al., "Training data-efficient image transformers", ICML 2021 (Ti and S), and a
tiny one to try things with. All take patches of 16 x 16 px."""

_CONFIG_FILE = "config.json"
_LOWEST, _FIRST = 0.002, 0.01  # of the learning rate: where the cosine ends, and where the warm-up begins
_PACKAGES = ("entire-id", "torch", "transformers", "accelerate", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A training. The defaults are those of the ViT baseline of S. He et al. (see `entire_id.experiments.network`).

    Attributes:
        datasets: what to train on, at least one: folders, repositories or URLs. Several are joined.
        split: of which split, or which of one part: `train+val`; a set that has no `val` gives its train part.
        stream: read batches from shards as they are needed, of one data set.
        only_cameras: train on crops of these cameras alone; all by default.
        only_continents: train on crops from these continents alone; all by default.
        people_share: train on that share of the people of every data set, in (0, 1]; see `nested_share`.
        model: a name of `SHAPES`, whose weights are random; or a folder, such as a training wrote, or `owner/name` of
            the Hugging Face Hub.
        revision: branch, tag or commit of a model on the Hub.
        size: (height, width) in px to which crops are resized.
        stride: px from one patch to the next; 0 is the patch's own size, less makes patches overlap (12 in the paper).
        side: what the network is told of a crop besides its pixels.
        side_scale: factor of what it learns of that, λ in the paper.
        test_feature: which feature is compared: `after` the BNNeck, or `before` it.
        p: people in a batch of one process.
        k: crops of each.
        steps: batches that each process takes.
        learning_rate: highest of the schedule, see `learning_rate`.
        momentum: of SGD.
        weight_decay: of SGD.
        warmup: share of the steps in which the learning rate rises.
        max_grad_norm: to which gradients are clipped; 0 leaves them.
        id_weight: factor of the identity loss.
        label_smoothing: of the identity loss.
        triplet_weight: factor of the triplet loss.
        margin: of the triplet loss; None is the soft margin.
        ema_decay: of the moving average of the weights, which is then what is kept; 0 keeps the weights themselves.
        flip: see `TrainTransform`.
        pad: see `TrainTransform`.
        erase: see `TrainTransform`.
        mean: of the channels in [0, 1], by which crops are normalised; the model's own by default, else 0.5.
        std: likewise, above 0.
        precision: see `Precision`.
        gradient_checkpointing: compute activations again instead of keeping them: less memory, more time.
        device: `auto` is the GPU where there is one.
        num_workers: processes that read crops, for each that trains.
        seed: of weights, batches and augmentations.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints.
        weights_every: steps after which the weights are kept for good, from step 0 on; 0 keeps the last ones alone.
    """

    datasets: tuple[str, ...]
    split: str = "train"
    stream: bool = False
    only_cameras: tuple[int, ...] = ()
    only_continents: tuple[str, ...] = ()
    people_share: float = 1.0
    model: str = "vit-b"
    revision: str | None = None
    size: tuple[int, int] = (256, 128)
    stride: int = 0
    side: Side = "none"
    side_scale: float = 3.0
    test_feature: Literal["after", "before"] = "after"
    p: int = 16
    k: int = 4
    steps: int = 24_000
    learning_rate: float = 0.008
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    max_grad_norm: float = 0.0
    id_weight: float = 1.0
    label_smoothing: float = 0.0
    triplet_weight: float = 1.0
    margin: float | None = None
    ema_decay: float = 0.0
    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5
    mean: Triple | None = None
    std: Triple | None = None
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu"] = "auto"
    num_workers: int = 4
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1_000
    weights_every: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a setting is out of its range, or two of them do not go together.
        """
        self._check_types()
        if not self.datasets:
            raise ValueError("datasets: there is nothing to train on")
        self._check_ranges()
        self._check_sources()

    def _check_ranges(self) -> None:
        for name, low in _LEAST.items():
            values = getattr(self, name)
            if min(values if isinstance(values, tuple) else (values,)) < low:
                raise ValueError(f"{name} {values!r} is below {low}")
        for name in ("momentum", "warmup", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)!r} is not in [0, 1)")
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {self.std!r} is not above 0")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate {self.learning_rate!r} is not above 0")
        if not 0 < self.people_share <= 1:
            raise ValueError(f"people_share {self.people_share!r} is not in (0, 1]")

    def _check_types(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if not _is_a(getattr(self, name), kind):
                raise ValueError(f"{name} {getattr(self, name)!r} is not of type {_type_name(kind)}")

    def _check_sources(self) -> None:
        if len(set(self.datasets)) < len(self.datasets):
            raise ValueError(f"datasets {self.datasets!r} name one twice")
        if self.stream and len(self.datasets) > 1:
            raise ValueError("stream reads one data set; leave it out to join several")
        if self.side == "camera" and len(self.datasets) > 1:
            raise ValueError("side 'camera' needs one data set: joined ones number their cameras anew")
        if self.people_share < 1 and self.stream:
            raise ValueError("people_share needs to know all people before, which a stream does not")
        if self.side != "none" and self.stream:
            raise ValueError("side needs to know all cameras or continents before, which a stream does not")


def _is_a(value: object, kind: Any) -> bool:  # noqa: ANN401 a type, or what typing makes of some
    """Tell whether a value is of a type, as type checkers see it; floats are finite, and may be integers."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return True  # which words there are is said elsewhere
    if get_origin(kind) is tuple:
        each = [parts[0]] * len(value) if isinstance(value, tuple) and parts[-1] is ... else parts
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_is_a, value, each))
    if parts:
        return any(_is_a(value, part) for part in parts)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _type_name(kind: Any) -> str:  # noqa: ANN401 likewise
    """Return what a type is called in messages.

    >>> _type_name(tuple[int, int]), _type_name(float | None)
    ('tuple[int, int]', 'float | None')
    """
    return kind.__name__ if kind in (int, str, bool) else "finite float" if kind is float else str(kind)


_LEAST = {"p": 2, "k": 2, "steps": 1, "size": 1, "stride": 0, "weight_decay": 0, "max_grad_norm": 0, "num_workers": 0}
_LEAST |= {"seed": 0, "log_every": 1, "checkpoint_every": 1, "weights_every": 0, "id_weight": 0, "triplet_weight": 0}
_KNOWN = {
    "side": get_args(Side),
    "precision": get_args(Precision),
    "test_feature": ("after", "before"),
    "device": ("auto", "cpu"),
}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step in [0, steps).

    It rises linearly from a hundredth of the highest, then falls along half a cosine to 0.002 of it: the schedule of
    TransReID (`solver/scheduler_factory.py`), by step instead of by epoch, the cosine over what the warm-up leaves.

    >>> config = TrainConfig(datasets=("entire-id",), steps=102, warmup=0.01, learning_rate=1.0)
    >>> [round(learning_rate(config, step), 3) for step in (0, 1, 51, 101)]
    [0.01, 1.0, 0.501, 0.002]
    """
    num_warm = round(config.warmup * config.steps)
    if step < num_warm:
        return config.learning_rate * (_FIRST + (1 - _FIRST) * step / num_warm)
    share = (step - num_warm) / max(config.steps - 1 - num_warm, 1)
    return config.learning_rate * (_LOWEST + (1 - _LOWEST) * (1 + math.cos(math.pi * share)) / 2)


def find_run(out: Path, config: TrainConfig, facts: Mapping[str, Any]) -> bool:
    """Tell whether the folder `out` holds this training already; if not, one can be begun there.

    Args:
        out: folder of the run.
        config: its settings.
        facts: what else its result depends on: it must be the same, too.

    Raises:
        OutputExistsError: `out` holds something else than a run, or cannot be a folder.
        TrainingError: it holds a run of other settings.
    """
    if (out / _CONFIG_FILE).is_file():
        _compare(out, _read_run(out), _stated(config, facts))
        return True
    nearest = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():  # a file, or a link to nothing
        raise OutputExistsError(out, f"{str(nearest)!r} is no folder")
    partial = f"{_CONFIG_FILE}.partial"  # of a run that was killed just then
    if nearest == out and any(path.name != partial for path in out.iterdir()):
        raise OutputExistsError(out, "it holds something else than a training")
    return False


def claim_run(out: Path, config: TrainConfig, facts: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write the settings to the folder `out`, unless this training is there already: see `find_run`.

    Args:
        out: folder of the run.
        config: its settings.
        facts: see `find_run`, which raises the same.
        notes: what is good to know, and may be another when the run goes on.
    """
    if find_run(out, config, facts):
        return
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_stated(config, facts) | {**notes, "packages": _versions()}, indent=1) + "\n"
    rewrite(out / _CONFIG_FILE, lambda _: text.encode())


def _stated(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same, as JSON gives it back."""
    stated: dict[str, Any] = json.loads(json.dumps({"settings": asdict(config), **facts}))
    return stated


def _read_run(out: Path) -> dict[str, Any]:
    try:
        run = json.loads((out / _CONFIG_FILE).read_bytes())
        if isinstance(run["settings"], dict):
            return dict(run)
    except (ValueError, KeyError, TypeError) as error:
        raise OutputExistsError(out, f"its {_CONFIG_FILE} is not that of a training") from error
    raise OutputExistsError(out, f"its {_CONFIG_FILE} is not that of a training")


def _compare(out: Path, there: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Raise a TrainingError that names every setting and fact that differs."""
    # What was moved is told by its content, a model by its weights; how many workers read changes no batch.
    others = {"datasets", "num_workers", "model", "revision"}
    names = [field.name for field in fields(TrainConfig) if field.name not in others]
    differing = [
        f"{name} {old.get(name)!r} there, {new.get(name)!r} now"
        for old, new, keys in (
            (there["settings"], stated["settings"], names),
            (there, stated, [name for name in stated if name != "settings"]),
        )
        for name in keys
        if old.get(name) != new.get(name)
    ]
    if differing:
        again = "Give the same settings to go on with it, or name a new folder"
        raise TrainingError(out, f"it holds a training of other settings: {'; '.join(differing)}. {again}")


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _PACKAGES}
