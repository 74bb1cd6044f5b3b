"""The network of the baseline: a backbone of transformers, a BNNeck and a classifier; opened again to embed crops.

The ViT baseline of S. He et al., "TransReID: Transformer-based Object Re-Identification", ICCV 2021 (arXiv 2102.04378),
section 3.1, with overlapping patches, and with side information (section 3.3) where asked for. Its stochastic depth is
left out, which the ViT of transformers does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from entire_id.errors import MissingExtraError, ModelError
from entire_id.experiments.config import SHAPES, Side, TrainConfig, Triple
from entire_id.images import RgbImage
from entire_id.loading.models import (
    TRAINED_FILE,
    Device,
    Model,
    Preprocessing,
    check_no_run,
    digest_files,
    first_line,
    is_trained,
    probed,
    quiet,
    transformer_folder,
    transformer_identity,
)

__all__ = [
    "NetworkFacts",
    "ReidNetwork",
    "Weights",
    "find_weights",
    "new_network",
    "normalisation",
    "open_trained",
    "resize_positions",
    "save_trained",
]

_WEIGHTS_FILE = "model.safetensors"
_BACKBONE_FILE = "config.json"
_PROCESSOR_FILE = "preprocessor_config.json"
_HALF: Triple = (0.5, 0.5, 0.5)  # mean and deviation by which ViTs are trained, those of TransReID too
_UNSAFE_FREE = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Weights:
    """What a training starts from.

    Attributes:
        model: as it was asked for.
        folder: where its files lie; None for a name of `SHAPES`.
        is_random: there are no weights, so that the seed gives them.
        is_trained: it is what `train` wrote, whose network is gone on with for other people.
    """

    model: str
    folder: Path | None
    is_random: bool
    is_trained: bool = False

    @cached_property
    def identity(self) -> str:
        """The same wherever it lies: with the commit, or the SHA-256 of its files, which are read when it is asked."""
        if self.folder is None:
            return self.model
        return _trained_identity(self.folder) if self.is_trained else transformer_identity(self.model, self.folder)

    def summary(self) -> str:
        """Return what is to be said of them."""
        if not self.is_random:
            return f"weights: {self.identity}"
        return f"weights: random, drawn from the seed; {self.identity} brings none. Give --model a folder or a Hub name"


def find_weights(model: str, revision: str | None = None) -> Weights:
    """Return what a model starts from; those of the Hub are downloaded.

    Args:
        model: a name of `SHAPES`, a folder, also one that `train` wrote, or `owner/name`.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        ModelError: there is no such model, its weights are pickles, or it is the folder of a training.
    """
    if model in SHAPES:
        return Weights(model, None, is_random=True)
    check_no_run(model)
    if is_trained(model):
        folder = Path(model).expanduser().resolve()
        if not (folder / _WEIGHTS_FILE).is_file():
            raise ModelError(model, f"it has no {_WEIGHTS_FILE}")
        return Weights(model, folder, is_random=False, is_trained=True)
    if not Path(model).expanduser().is_dir() and model.count("/") != 1:
        raise ModelError(model, f"no such model; expected {', '.join(SHAPES)}, a folder, or owner/name of the Hub")
    folder = transformer_folder(model, revision)
    if not (folder / _BACKBONE_FILE).is_file():
        raise ModelError(model, f"it has no {_BACKBONE_FILE}, which says what network it is")
    has_weights, is_local = any(folder.glob("*.safetensors")), Path(model).expanduser().is_dir()
    if not has_weights and (not is_local or any(folder.glob("*.bin"))):
        raise ModelError(model, "its weights are no safetensors, and nothing else is read")
    return Weights(model, folder, is_random=not has_weights)


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What a network is made of, besides its weights.

    Attributes:
        size: (height, width) in px.
        mean: of R, G, B in [0, 1].
        std: of R, G, B.
        stride: px from one patch to the next; 0 is the patch's own size.
        side: what it is told of a crop besides its pixels.
        side_of: name of the data set whose cameras these are; "" for continents, which are the same everywhere.
        side_values: cameras or continents that it knows; it is told the mean of them of any other.
        side_scale: factor of what it learned of them.
        test_feature: see `TrainConfig`.
        num_people: classes of the classifier.
    """

    size: tuple[int, int]
    mean: Triple
    std: Triple
    stride: int
    side: Side
    side_of: str
    side_values: tuple[int | str, ...]
    side_scale: float
    test_feature: str
    num_people: int


def normalisation(config: TrainConfig, weights: Weights) -> tuple[Triple, Triple]:
    """Return mean and deviation of the channels: those asked for, else those of the model's own processor, else 0.5.

    A processor that has one number, as transformers allows, means it for all three channels.

    Raises:
        ModelError: what the model says is neither one number nor three, or no deviation.
    """
    if weights.is_trained and weights.folder is not None:
        known = _read_facts(weights.folder)
        return config.mean or known.mean, config.std or known.std
    own = _read_processor(weights)
    return (
        config.mean or _channels(weights.model, "image_mean", own.get("image_mean")),
        config.std or _channels(weights.model, "image_std", own.get("image_std")),
    )


def _read_processor(weights: Weights) -> Mapping[str, Any]:
    """Return what a model says of what is done to its crops; nothing where it says nothing."""
    if weights.folder is None or not (file := weights.folder / _PROCESSOR_FILE).is_file():
        return {}
    try:
        stated = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(weights.model, f"its {_PROCESSOR_FILE} is no JSON ({first_line(error)})") from error
    if not isinstance(stated, dict):
        raise ModelError(weights.model, f"its {_PROCESSOR_FILE} holds no settings")
    return stated


def _channels(model: str, name: str, stated: Any) -> Triple:  # noqa: ANN401 whatever a file says
    """Return what a processor says of three channels; 0.5 where it says nothing."""
    if stated is None or stated == []:
        return _HALF
    values = stated if isinstance(stated, list) else [stated]
    are_numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if not are_numbers or len(values) not in (1, 3) or (name == "image_std" and min(values) <= 0):
        expected = "one number or three" + ", above 0" * (name == "image_std")
        what = f"its {_PROCESSOR_FILE} has {name} {stated!r}; expected {expected}"
        raise ModelError(model, f"{what}. Mend it, or give mean and std in TrainConfig")
    red, green, blue = values if len(values) == 3 else values * 3
    return red, green, blue


class ReidNetwork(nn.Module):
    """A backbone, a BNNeck and a classifier.

    BNNeck: H. Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-Identification", CVPR workshops 2019
    (arXiv 1903.07071), section 3.6: the triplet loss sees the backbone's feature; batch normalisation, whose shift
    stays 0, stands between it and the classifier, which has no bias.

    Attributes:
        backbone: of transformers.
        facts: see `NetworkFacts`.
    """

    def __init__(self, backbone: Any, facts: NetworkFacts) -> None:  # noqa: ANN401 of many classes
        """Put a neck and a classifier on `backbone`, which is fitted to size and stride.

        Raises:
            ModelError: the backbone cannot take the stride, side information, or crops of that size.
        """
        super().__init__()
        self.backbone, self.facts = backbone, facts
        stretches = not _is_vit(backbone) and "interpolate_pos_encoding" in signature(backbone.forward).parameters
        self._arguments = {"interpolate_pos_encoding": True} if stretches else {}
        if _is_vit(backbone):
            _fit_vit(backbone, facts)
        elif facts.stride or facts.side != "none":
            what = f"a {type(backbone).__name__} takes neither stride nor side information; a ViT does"
            raise ModelError(type(backbone).__name__, what)
        if facts.side != "none":
            self.side = nn.Parameter(torch.empty(len(facts.side_values), backbone.config.hidden_size))
            nn.init.trunc_normal_(self.side, std=0.02)  # as TransReID does
        dim = self._dim()
        self.neck = nn.BatchNorm1d(dim)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, facts.num_people, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)  # as the code of the bag of tricks and TransReID do

    def forward(self, pixels: torch.Tensor, side: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the backbone's features (n, d) and logits (n, people), for the two losses.

        Args:
            pixels: (n, 3, height, width) floats, normalised.
            side: (n,) int64 places in `side_values`, -1 for what is not there; None where none are told.
        """
        features = self._backbone_features(pixels, side)
        return features, self.classifier(self.neck(features))

    def describe(self, pixels: torch.Tensor, side: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features (n, d) by which crops are compared; see `forward`."""
        features = self._backbone_features(pixels, side)
        normalised: torch.Tensor = self.neck(features)
        return normalised if self.facts.test_feature == "after" else features

    def _backbone_features(self, pixels: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        with self._told(pixels, side):
            output = self.backbone(pixel_values=pixels, **self._arguments)
        pooled = getattr(output, "pooler_output", None)
        features: torch.Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return features

    @contextmanager
    def _told(self, pixels: torch.Tensor, side: torch.Tensor | None) -> Iterator[None]:
        """Add what is learned of the cameras or continents to all tokens, meanwhile (TransReID, equation 4)."""
        if self.facts.side == "none":
            yield
            return
        if side is None:
            side = torch.full((len(pixels),), -1, device=pixels.device)
        known = torch.cat([self.side, self.side.mean(0, keepdim=True)])  # -1 is the last
        added = self.facts.side_scale * known[side][:, None]
        handle = self.backbone.embeddings.register_forward_hook(lambda _module, _args, tokens: tokens + added)
        try:
            yield
        finally:
            handle.remove()

    def _dim(self) -> int:
        """Return the length of the backbone's features, as a grey crop gives it."""
        was_training = self.backbone.training
        try:
            with torch.inference_mode():
                self.backbone.eval()
                features = self._backbone_features(torch.zeros(1, 3, *self.facts.size), None)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            what = f"it cannot be run on crops of {self.facts.size} px ({first_line(error)})"
            raise ModelError(type(self.backbone).__name__, what) from error
        finally:
            self.backbone.train(was_training)
        return features.shape[1]


def _is_vit(backbone: Any) -> bool:  # noqa: ANN401 of many classes
    return type(backbone).__name__ == "ViTModel"


def _pair(sides: Any) -> tuple[int, int]:  # noqa: ANN401 a number, or two
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])


def _grid(size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Return how many patches there are along height and width: TransReID, equation 2."""
    rows, columns = ((length - of) // step + 1 for length, of, step in zip(size, patch, stride, strict=True))
    return rows, columns


def _fit_vit(vit: Any, facts: NetworkFacts) -> None:  # noqa: ANN401 transformers has no types here
    """Change patches and positions of a ViT, which was made for another size perhaps, to what `facts` say."""
    patch = _pair(vit.config.patch_size)
    stride = (facts.stride, facts.stride) if facts.stride else patch
    if min(stride) > min(patch) or any(length < of for length, of in zip(facts.size, patch, strict=True)):
        what = f"patches of {patch} px with stride {stride} leave parts of crops of {facts.size} px unseen"
        raise ModelError("ViTModel", what)
    embeddings = vit.embeddings
    old, new = _grid(_pair(vit.config.image_size), patch, patch), _grid(facts.size, patch, stride)
    embeddings.position_embeddings = nn.Parameter(resize_positions(embeddings.position_embeddings.data, old, new))
    embeddings.patch_embeddings.projection.stride = stride
    embeddings.image_size = embeddings.patch_embeddings.image_size = facts.size


def resize_positions(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Return the position embeddings of a grid of another size, (1, 1 + rows x columns, d).

    Bicubic, corners not aligned: as A. Dosovitskiy et al. interpolate them in 2D (ICLR 2021, section 3.2), and DINOv2
    does. TransReID is bilinear there.

    Args:
        positions: (1, 1 + rows x columns, d) that of the first token, then row after row.
        old: (rows, columns) of the grid that they are of.
        new: (rows, columns) that are wanted.
    """
    if old == new:
        return positions
    first, patches = positions[:, :1], positions[:, 1:]
    plane = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    plane = nn.functional.interpolate(plane, new, mode="bicubic", align_corners=False)
    return torch.cat([first, plane.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def new_network(weights: Weights, facts: NetworkFacts) -> ReidNetwork:
    """Return a network to be trained; what has no weights is drawn from torch's generator.

    Parameters that its output does not depend on, as some families have, are frozen: processes that train together
    would wait for their gradients.

    Raises:
        ModelError: it cannot be made, or what was trained took crops or patches of another size.
        MissingExtraError: transformers is not installed.
    """
    network = ReidNetwork(_new_backbone(weights, facts), facts)
    if weights.is_trained and weights.folder is not None:
        _take_over(network, weights.folder)
    network.eval()
    logits = network(torch.zeros(1, 3, *facts.size))[1]
    logits.sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None
    return network.train()


def _new_backbone(weights: Weights, facts: NetworkFacts) -> Any:  # noqa: ANN401 of many classes
    transformers = _transformers()
    if weights.folder is None:
        made = transformers.ViTConfig(**SHAPES[weights.model], image_size=facts.size, layer_norm_eps=1e-6)
        return transformers.ViTModel(made, add_pooling_layer=False)
    folder, options = weights.folder, dict(_UNSAFE_FREE)
    try:
        with quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            plain = {"add_pooling_layer": False} if config.model_type == "vit" else {}
            if weights.is_random or weights.is_trained:
                return _of_config(transformers, config)
            backbone, loaded = transformers.AutoModel.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True, dtype=torch.float32, **plain, **options
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(weights.model, f"transformers cannot open it ({first_line(error)})") from error
    # A pooled output may be learned anew: many files lack its weights.
    if missing := sorted(key for key in loaded["missing_keys"] if "pooler" not in key.split(".")):
        raise ModelError(weights.model, f"its files lack {len(missing)} weights, {missing[0]!r} among them")
    return backbone


def _of_config(transformers: Any, config: Any) -> Any:  # noqa: ANN401 of many classes
    """Return a backbone with random weights."""
    if config.model_type == "vit":
        return transformers.ViTModel(config, add_pooling_layer=False)
    return transformers.AutoModel.from_config(config, trust_remote_code=False)


def _transformers() -> Any:  # noqa: ANN401 a package that may be missing
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "training", "train") from error
    return transformers


# --- on disk ----------------------------------------------------------------------------------------------------------


def _take_over(network: ReidNetwork, folder: Path) -> None:
    """Put in what was trained: all but the classifier, which is of other people, and what was learned of other sides.

    Raises:
        ModelError: it is no network that was trained here, or one of another size.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    before = _read_facts(folder)
    try:
        state = load_file(folder / _WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(str(folder), f"it is no network that was trained here ({first_line(error)})") from error
    now = network.facts
    for name in ("size", "stride"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            raise ModelError(str(folder), f"it was trained with {name} {old}, and is to go on with {new}")
    anew = {"classifier.weight"}
    if any(getattr(before, name) != getattr(now, name) for name in ("side", "side_of", "side_values")):
        anew.add("side")
    kept = {name: tensor for name, tensor in state.items() if name not in anew}
    found = network.load_state_dict(kept, strict=False)
    if found.unexpected_keys or set(found.missing_keys) - anew:
        raise ModelError(str(folder), "its weights are not those of the network that it describes")


def _trained_identity(folder: Path) -> str:
    digest = digest_files(folder / name for name in (_WEIGHTS_FILE, _BACKBONE_FILE, TRAINED_FILE))
    return f"{folder.parent.name}/{folder.name}@sha256:{digest}"


def save_trained(network: ReidNetwork, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a network to a folder, for `open_trained`.

    Args:
        network: what it is.
        folder: an empty one.
        weights: its own, or others by the same names.
    """
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, folder / _WEIGHTS_FILE)
    backbone = network.backbone.config
    backbone.image_size = (
        list(network.facts.size) if _is_vit(network.backbone) else backbone.to_dict().get("image_size")
    )
    stated = json.loads(backbone.to_json_string(use_diff=False))
    stated.pop("_name_or_path", None)  # where its weights came from on this machine is no part of it
    (folder / _BACKBONE_FILE).write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n")
    (folder / TRAINED_FILE).write_text(json.dumps(asdict(network.facts), indent=1) + "\n")


def open_trained(folder: str | Path, device: Device = "auto") -> Model:
    """Return the network that `train` wrote, ready to embed crops.

    With side information it asks to be told camera or continent of every crop; of one that it does not know, such as
    any camera of a data set of another name, it takes the mean.

    Args:
        folder: `model` or one of `weights` in the folder of a training.
        device: see `Device`.

    Raises:
        ModelError: there is none, or the device cannot be used.
        MissingExtraError: transformers is not installed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).expanduser().resolve()
    check_no_run(str(folder))
    transformers = _transformers()
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(str(folder), "device 'cuda' cannot be used: torch sees no GPU here")
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    facts = _read_facts(folder)
    try:
        with quiet(transformers), torch.random.fork_rng():  # weights are drawn, then replaced
            config = transformers.AutoConfig.from_pretrained(folder, **_UNSAFE_FREE)
            network = ReidNetwork(_of_config(transformers, config), facts)
        network.load_state_dict(load_file(folder / _WEIGHTS_FILE))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(str(folder), f"it is no network that was trained here ({first_line(error)})") from error
    network.to(where).eval()
    preprocessing = Preprocessing(facts.size, facts.mean, facts.std)
    places = {value: place for place, value in enumerate(facts.side_values)}

    def run(images: Sequence[RgbImage], told: Sequence[int | str] | None = None) -> torch.Tensor:
        pixels = torch.from_numpy(preprocessing(images)).to(where)
        side = None if told is None else torch.tensor([places.get(value, -1) for value in told], device=where)
        with torch.inference_mode():
            return network.describe(pixels, side)

    described = preprocessing.facts() | {"output": f"{facts.test_feature} the BNNeck", "stride": facts.stride}
    column = {"none": "", "camera": "camid", "continent": "continent"}[facts.side]
    told = {"side": facts.side} | ({"side_of": facts.side_of} if facts.side_of else {})
    return probed(_trained_identity(folder), run, described | told, where, column, facts.side_of)


def _read_facts(folder: Path) -> NetworkFacts:
    """Return what a network that was trained is made of.

    Raises:
        ModelError: it is none.
    """
    try:
        stated = json.loads((folder / TRAINED_FILE).read_bytes()).items()
        facts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stated}
        return NetworkFacts(**facts)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(str(folder), f"it is no network that was trained here ({first_line(error)})") from error
