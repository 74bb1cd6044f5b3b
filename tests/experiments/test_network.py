"""The network: patches, positions, side information, neck, weights that load by name, a folder that gives it back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from entire_id.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from entire_id.experiments.config import TrainConfig  # noqa: E402 needs torch
from entire_id.experiments.network import (  # noqa: E402
    NetworkFacts,
    find_weights,
    new_network,
    normalisation,
    open_trained,
    resize_positions,
    save_trained,
)

FACTS = NetworkFacts(
    size=(64, 32),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    stride=0,
    side="none",
    side_of="",
    side_values=(),
    side_scale=3.0,
    test_feature="after",
    num_people=7,
)
CROPS = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tiny(**changes):
    return new_network(find_weights("tiny"), dataclasses.replace(FACTS, **changes))


def save_vit(folder: Path, **changes) -> Path:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ViTConfig(**shape, image_size=48, patch_size=16, **changes)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    return folder


# --- positions and patches --------------------------------------------------------------------------------------------


def cubic(x: float) -> float:
    """R. Keys, "Cubic convolution interpolation", 1981, with a = -0.75, as torch and OpenCV have it."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def cubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old) how much of each old place a new one has; places beyond the border are the border's."""
    weights = np.zeros((new, old))
    for place in range(new):
        centre = (place + 0.5) * old / new - 0.5
        first = int(np.floor(centre))
        for near in range(first - 1, first + 3):
            weights[place, min(max(near, 0), old - 1)] += cubic(centre - near)
    return weights


@pytest.mark.parametrize(("old", "new"), [((14, 14), (16, 8)), ((14, 14), (21, 10)), ((3, 4), (7, 2))])
def test_positions_are_resized_bicubically(old, new):
    positions = torch.randn(1, 1 + old[0] * old[1], 5)
    resized = resize_positions(positions, old, new)
    plane = positions[0, 1:].numpy().reshape(*old, 5)
    expected = np.einsum("ri,cj,ijd->rcd", cubic_weights(old[0], new[0]), cubic_weights(old[1], new[1]), plane)
    assert torch.equal(resized[:, :1], positions[:, :1])
    np.testing.assert_allclose(resized[0, 1:].numpy(), expected.reshape(-1, 5), atol=1e-5)


def test_positions_of_the_same_grid_stay():
    positions = torch.randn(1, 13, 5)
    assert resize_positions(positions, (3, 4), (3, 4)) is positions


@pytest.mark.parametrize(("stride", "grid"), [(0, (4, 2)), (16, (4, 2)), (12, (5, 2)), (8, (7, 3))])
def test_a_smaller_stride_gives_more_patches(stride, grid):
    network = tiny(stride=stride)
    tokens = network.backbone(CROPS).last_hidden_state
    assert tokens.shape == (3, 1 + grid[0] * grid[1], 96)
    patches = network.backbone.embeddings.patch_embeddings
    step = stride or 16
    kernel = patches.projection
    top = (grid[0] - 1) * step
    window = (CROPS[0, :, top : top + 16, step : step + 16] * kernel.weight).sum((1, 2, 3)) + kernel.bias
    torch.testing.assert_close(patches(CROPS)[0, (grid[0] - 1) * grid[1] + 1], window, atol=1e-4, rtol=1e-4)


def test_strides_that_leave_gaps_and_crops_below_a_patch_are_refused():
    for changes in ({"stride": 17}, {"size": (64, 12)}):
        with pytest.raises(ModelError, match="leave parts of crops"):
            tiny(**changes)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_of_a_folder_load_by_name(tmp_path):
    folder = save_vit(tmp_path / "vit")
    weights = find_weights(str(folder))
    assert not weights.is_random
    assert weights.summary().startswith("weights: vit@sha256:")
    network = new_network(weights, FACTS)
    there = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    states = (dict(model.named_parameters()) for model in (network.backbone, there))
    for (name, ours), theirs in zip(next(states).items(), next(states).values(), strict=True):
        if name == "embeddings.position_embeddings":
            theirs = resize_positions(theirs, (3, 3), (4, 2))
        assert torch.equal(ours, theirs), name
    config = TrainConfig(datasets=("d",))
    assert normalisation(config, weights) == ((0.4,) * 3, (0.2,) * 3)
    assert normalisation(dataclasses.replace(config, mean=(0.1,) * 3), weights)[0] == (0.1,) * 3
    assert normalisation(config, find_weights("tiny")) == ((0.5,) * 3, (0.5,) * 3)


def test_one_number_means_all_channels(tmp_path):
    folder = save_vit(tmp_path / "vit")
    for stated in ({"image_mean": 0, "image_std": 0.25}, {"image_mean": [0], "image_std": [0.25]}):
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
        assert normalisation(TrainConfig(datasets=("d",)), find_weights(str(folder))) == ((0,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image_mean": [0.5', "is no JSON"),
        ("[1, 2]", "holds no settings"),
        ('{"image_mean": [0.5, 0.5]}', r"has image_mean \[0\.5, 0\.5\]; expected one number or three\. Mend it"),
        ('{"image_mean": "grey"}', "has image_mean 'grey'"),
        ('{"image_mean": [0.5, NaN, 0.5]}', "has image_mean"),
        ('{"image_std": [0.5, 0, 0.5]}', "has image_std .* expected one number or three, above 0"),
    ],
)
def test_a_processor_that_makes_no_sense_is_named(tmp_path, text, message):
    folder = save_vit(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(ModelError, match=f"its preprocessor_config.json {message}"):
        normalisation(TrainConfig(datasets=("d",)), find_weights(str(folder)))


def test_random_weights_are_said_aloud_and_follow_from_the_generator(tmp_path):
    folder = save_vit(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    for name in ("tiny", str(folder)):
        weights = find_weights(name)
        assert weights.is_random
        assert "weights: random" in weights.summary()
        torch.manual_seed(3)
        first = new_network(weights, FACTS).state_dict()
        torch.manual_seed(3)
        second = new_network(weights, FACTS).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_weights_that_are_missing_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_vit(tmp_path / "vit")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("layernorm.weight"))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="its files lack 1 weights"):
        new_network(find_weights(str(folder)), FACTS)


def test_weights_of_the_hub_are_told_by_their_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--vit"
    save_vit(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_weights("some/vit").summary() == f"weights: some/vit@{commit}"
    assert new_network(find_weights("some/vit"), FACTS).backbone.config.hidden_size == 32
    with pytest.raises(ModelError, match="the Hub cannot be reached"):
        find_weights("some/other")


def test_pickled_weights_are_refused_and_not_taken_for_none(tmp_path):
    folder = save_vit(tmp_path / "vit")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its weights are no safetensors"):
        find_weights(str(folder))


@pytest.mark.parametrize("name", ["vit-xl", "no/such/folder"])
def test_models_that_are_not_there_are_refused(name):
    with pytest.raises(ModelError, match="expected tiny, vit-ti, vit-s, vit-b, a folder"):
        find_weights(name)


def save_family(folder: Path, family: str) -> Path:
    if family == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.Dinov2Config(**shape, image_size=28, patch_size=14, mlp_ratio=2)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "dim"), [("resnet", 12), ("dinov2", 16)])
def test_other_families_are_trained_too(tmp_path, family, dim):
    weights = find_weights(str(save_family(tmp_path / family, family)))
    network = new_network(weights, FACTS)
    features, logits = network(CROPS)
    assert (features.shape, logits.shape) == ((3, dim), (3, 7))
    (features.sum() + logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    with pytest.raises(ModelError, match="takes neither stride nor side information"):
        new_network(weights, dataclasses.replace(FACTS, stride=8))


# --- neck and side information ----------------------------------------------------------------------------------------


def test_the_triplet_loss_sees_features_before_the_neck_and_the_classifier_those_after_it():
    network = tiny()
    features, logits = network(CROPS)
    tokens = network.backbone(CROPS).last_hidden_state[:, 0]
    torch.testing.assert_close(features, tokens)
    normalised = (features - features.mean(0)) / (features.var(0, unbiased=False) + network.neck.eps).sqrt()
    torch.testing.assert_close(logits, normalised @ network.classifier.weight.T, atol=1e-4, rtol=1e-4)
    assert not network.neck.bias.requires_grad
    assert not network.neck.bias.any()
    assert network.classifier.bias is None
    network.eval()
    torch.testing.assert_close(network.describe(CROPS), network.neck(tokens))
    network.facts = dataclasses.replace(FACTS, test_feature="before")
    torch.testing.assert_close(network.describe(CROPS), tokens)


def test_what_is_told_of_a_camera_is_added_to_every_token():
    network = tiny(side="camera", side_values=(4, 9), side_scale=2.0).eval()
    side = torch.tensor([1, 0, -1])
    embeddings = network.backbone.embeddings
    known = [network.side[1], network.side[0], network.side.mean(0)]
    tokens = embeddings(CROPS) + 2 * torch.stack(known)[:, None]
    for layer in network.backbone.layers:
        tokens = layer(tokens)
    expected = network.backbone.layernorm(tokens)[:, 0]
    torch.testing.assert_close(network(CROPS, side)[0], expected, atol=1e-5, rtol=1e-5)
    untold = network(CROPS)[0]
    torch.testing.assert_close(untold[2], expected[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(untold[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"stride": 12}, {"test_feature": "before"}, {"side": "camera"}])
def test_a_folder_gives_the_network_back(tmp_path, changes):
    if "side" in changes:
        changes = changes | {"side_of": "mine", "side_values": (4, 9)}
    network = tiny(**changes)
    network(CROPS)  # moves the statistics of the neck
    network.eval()
    save_trained(network, tmp_path, network.state_dict())
    state = torch.random.get_rng_state()
    model = open_trained(tmp_path, "cpu")
    assert torch.equal(state, torch.random.get_rng_state())
    images = [np.random.default_rng(number).integers(0, 256, (64, 32, 3), np.uint8) for number in range(3)]
    pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images]) * 2 - 1
    told = [9, 4, 1000] if changes.get("side") else None
    side = torch.tensor([1, 0, -1]) if told else None
    np.testing.assert_allclose(model(images, told), network.describe(pixels, side).detach().numpy(), atol=1e-4)
    assert model.column == ("camid" if told else "")
    assert (model.knows("mine"), model.knows("yours")) == (bool(told), False)
    assert ("'yours'" in model.caution("yours")) == bool(told)
    assert model.caution("mine") == ""
    assert open_trained(tmp_path, "cpu").name == model.name


@pytest.mark.parametrize("damage", [None, b"{", b"[]", b'{"size": [64, 32]}'])
def test_a_network_that_lacks_what_it_is_made_of_is_refused(tmp_path, damage):
    network = tiny()
    save_trained(network, tmp_path, network.state_dict())
    lost = tmp_path / ("model.safetensors" if damage is None else "trained.json")
    lost.unlink() if damage is None else lost.write_bytes(damage)
    with pytest.raises(ModelError, match=r"it has no model\.safetensors|it is no network that was trained here"):
        normalisation(TrainConfig(datasets=("d",)), find_weights(str(tmp_path)))
    with pytest.raises(ModelError, match="it is no network that was trained here"):
        open_trained(tmp_path, "cpu")


def test_a_folder_that_no_training_wrote_is_refused(tmp_path):
    with pytest.raises(ModelError, match="it is no network that was trained here"):
        open_trained(save_vit(tmp_path / "vit"))
