"""Models of every kind, small and drawn at random, against what the packages themselves compute."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entire_id.errors import ModelError
from entire_id.loading.embed import embed, read_features
from entire_id.loading.models import ModelOptions, Preprocessing, open_model
from entire_id.loading.reader import CropReader

RNG = np.random.default_rng(0)
CROPS = [RNG.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((48, 24), (64, 30), (20, 41))]
SIZED = ModelOptions(size=(32, 16), device="cpu")
CPU = ModelOptions(device="cpu")


# --- transformers -----------------------------------------------------------------------------------------------------


def save_vit(folder: Path, pooled: bool = True, image_size: tuple[int, int] = (32, 16)) -> Path:
    """Write a ViT with random weights, and its processor."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=image_size,
            patch_size=8,
        )
        transformers.ViTModel(config, add_pooling_layer=pooled).save_pretrained(folder)
    facts = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": image_size[0], "width": image_size[1]},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("models") / "vit")


def by_hand(folder: Path, images: list[np.ndarray], resample: Image.Resampling, **arguments: bool):
    """Run the network with transformers alone, on pixels that Pillow and numpy prepare."""
    import torch
    from transformers import ViTModel

    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.5, 0.25, 0.2])
    resized = [np.asarray(Image.fromarray(image).resize((16, 32), resample)) for image in images]
    pixels = np.stack([((pixel / 255 - mean) / std).transpose(2, 0, 1) for pixel in resized]).astype(np.float32)
    with torch.no_grad():
        return ViTModel.from_pretrained(folder).eval()(torch.from_numpy(pixels), **arguments)


def test_transformer_gives_its_pooled_output_over_a_data_set(vit: Path, packed: Path, tmp_path: Path) -> None:
    model = open_model(str(vit), CPU)
    out = embed(packed, ["query", "gallery"], model, tmp_path / "features", batch_rows=5)
    with CropReader(packed, "gallery") as reader:
        images = [reader.pixels(row) for row in range(len(reader))]
    expected = by_hand(vit, images, Image.Resampling.BICUBIC).pooler_output.numpy()
    np.testing.assert_allclose(read_features(packed, "gallery", out).values, expected, atol=1e-5)
    facts = json.loads((out / "features.json").read_text())
    assert facts["dim"] == 32
    assert facts["preprocessing"]["image_mean"] == [0.5, 0.4, 0.3]
    assert facts["preprocessing"]["output"] == "pooler_output"
    assert facts["model"].startswith("vit@sha256:")


def test_size_replaces_the_processors_own(vit: Path) -> None:
    model = open_model(str(vit), SIZED)
    expected = by_hand(vit, CROPS, Image.Resampling.BILINEAR).pooler_output.numpy()
    np.testing.assert_allclose(model(CROPS), expected, atol=1e-5)
    assert (model.facts["size"], model.facts["std"]) == ([32, 16], [0.5, 0.25, 0.2])


def test_positions_are_stretched_to_another_size(tmp_path: Path) -> None:
    square = save_vit(tmp_path / "square", image_size=(16, 16))
    model = open_model(str(square), SIZED)
    output = by_hand(square, CROPS, Image.Resampling.BILINEAR, interpolate_pos_encoding=True)
    np.testing.assert_allclose(model(CROPS), output.pooler_output.numpy(), atol=1e-5)
    assert model.facts["interpolate_pos_encoding"] is True


def test_size_that_the_network_cannot_take_is_named(vit: Path) -> None:
    """Its positions are no square, and transformers stretches squares alone."""
    with pytest.raises(ModelError, match=r"it cannot be run on crops of \(64, 32\) px"):
        open_model(str(vit), ModelOptions(size=(64, 32), device="cpu"))


def test_pooled_output_without_weights_is_not_taken(tmp_path: Path) -> None:
    """transformers draws them at random: two runs would give different features."""
    folder = save_vit(tmp_path / "plain", pooled=False)
    model = open_model(str(folder), CPU)
    expected = by_hand(folder, CROPS, Image.Resampling.BICUBIC).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(model(CROPS), expected, atol=1e-5)
    assert model.facts["output"] == "last_hidden_state[:, 0]"


def save_other(folder: Path, vit: Path, kind: str) -> object:
    """Write a network of pictures and text, or one of convolutions, with random weights; return it."""
    import transformers

    if kind == "clip":
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        vision = shape | {"image_size": 16, "patch_size": 8}
        text = shape | {"vocab_size": 20, "max_position_embeddings": 8}
        network = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        )
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_channels=3
        )
        network = transformers.ResNetModel(config)
    network.eval().save_pretrained(folder)
    shutil.copy(vit / "preprocessor_config.json", folder)
    return network


@pytest.mark.parametrize("kind", ["clip", "resnet"])
def test_networks_of_other_families_give_a_feature_a_crop(vit: Path, tmp_path: Path, kind: str) -> None:
    import torch

    network = save_other(tmp_path / kind, vit, kind)
    model = open_model(str(tmp_path / kind), SIZED)
    pixels = torch.from_numpy(Preprocessing((32, 16), (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))(CROPS))
    with torch.no_grad():
        if kind == "clip":
            vision = network.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
            expected, output = network.visual_projection(vision), "get_image_features"
        else:
            expected, output = network(pixels).pooler_output[:, :, 0, 0], "pooler_output"
    np.testing.assert_allclose(model(CROPS), expected.numpy(), atol=1e-5)
    assert (model.dim, model.facts["output"]) == (12, output)


def test_missing_weights_are_refused(vit: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(vit, tmp_path / "vit")
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    gone = next(name for name in weights if name.endswith("layernorm.weight"))
    del weights[gone]
    save_file(weights, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"its files lack 1 weights, '{gone}'"):
        open_model(str(tmp_path / "vit"), CPU)


def test_model_of_the_hub_is_told_by_its_commit(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--vit"
    shutil.copytree(vit, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = open_model("some/vit", CPU)
    assert model.name == f"some/vit@{commit}"
    np.testing.assert_array_equal(model(CROPS), open_model(str(vit), CPU)(CROPS))
    with pytest.raises(ModelError, match="revision v2 of a model on the Hub is not in the cache"):
        open_model("some/vit", ModelOptions(revision="v2", device="cpu"))


def test_identity_is_that_of_the_files(vit: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(vit, tmp_path / "vit")
    first = open_model(str(vit), CPU).name
    assert open_model(str(copy), CPU).name == first
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    assert open_model(str(copy), CPU).name != first


# --- ONNX -------------------------------------------------------------------------------------------------------------


def save_onnx(
    path: Path, shape: tuple[object, ...] = ("n", 3, 8, 4), outputs: tuple[str, ...] = ("map", "mean")
) -> Path:
    """Write a network of two outputs: the input with its sign turned, and its mean over height and width."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Neg", ["pixels"], ["map"]),
        helper.make_node("ReduceMean", ["map"], ["mean"], axes=[2, 3], keepdims=0),
    ]
    given = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    shapes = {"map": shape, "mean": (shape[0], 3)}
    taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs]
    graph = helper.make_graph(nodes, "network", [given], taken)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def mean_by_hand(size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    resized = [Image.fromarray(crop).resize(size[::-1], Image.Resampling.BILINEAR) for crop in CROPS]
    return np.stack([-((np.asarray(image) / 255 - mean) / std).mean((0, 1)) for image in resized])


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_onnx_gives_its_first_matrix(tmp_path: Path, batch: str | int) -> None:
    model = open_model(str(save_onnx(tmp_path / "net.onnx", (batch, 3, 8, 4))), CPU)
    expected = mean_by_hand((8, 4), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    np.testing.assert_allclose(model(CROPS), expected, atol=1e-5)
    assert (model.dim, model.facts["output"], model.facts["size"]) == (3, "mean", [8, 4])
    assert model.name.startswith("net.onnx@sha256:")


def test_onnx_heeds_size_mean_and_std(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "net.onnx", ("n", 3, "h", "w"))
    options = ModelOptions(size=(10, 6), mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))
    expected = mean_by_hand((10, 6), (0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    np.testing.assert_allclose(open_model(str(path), options)(CROPS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "outputs", "options", "message"),
    [
        (("n", 3, "h", "w"), ("mean",), CPU, "say which: --size HEIGHTxWIDTH"),
        (("n", 3, 8, 4), ("mean",), SIZED, "it takes crops of 8 x 4 px"),
        (("n", 1, 8, 4), ("mean",), CPU, r"of shape \['n', 1, 8, 4\]; expected"),
        (("n", 3, 8, 4), ("map",), CPU, r"none of its outputs is of shape \(n, d\): map \(1, 3, 8, 4\)"),
        (("n", 3, 8, 4), ("mean",), ModelOptions(revision="v1"), "cannot heed the option revision; it takes device"),
    ],
)
def test_onnx_that_does_not_fit_is_refused(tmp_path: Path, shape, outputs, options, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_model(str(save_onnx(tmp_path / "net.onnx", shape, outputs)), options)


# --- functions, and what is no model ----------------------------------------------------------------------------------


def test_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "my_own_model.py"
    source.write_text("import numpy as np\ndef mean(images): return np.stack([i.mean((0, 1)) for i in images])\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = open_model("my_own_model:mean")
    np.testing.assert_allclose(model(CROPS), [crop.mean((0, 1)) for crop in CROPS], rtol=1e-6)
    assert model.name.startswith("my_own_model:mean@sha256:")
    with pytest.raises(ModelError, match="module 'my_own_model' has no function 'median'"):
        open_model("my_own_model:median")


@pytest.mark.parametrize(
    ("kind", "way"), [("plain", ""), ("short", ".bfloat16()"), ("trained", ".requires_grad_()"), ("long", ".double()")]
)
def test_function_may_return_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str) -> None:
    pytest.importorskip("torch")
    source = "import numpy, torch\ndef mean(images): return torch.tensor(numpy.stack([i.mean((0, 1)) for i in images]))"
    (tmp_path / f"{kind}_tensors.py").write_text(f"{source}{way}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = open_model(f"{kind}_tensors:mean")(CROPS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [crop.mean((0, 1)) for crop in CROPS], rtol=1e-2)


def test_function_that_returns_no_array_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ragged_model.py").write_text("def mean(images): return [[[1.0]], [[1.0, 2.0]]]\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="model 'ragged_model:mean'.* it gave a list that is no array"):
        open_model("ragged_model:mean")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", CPU, "no such model; expected colour, a folder, a file .onnx, owner/name"),
        ("no_such_module:f", ModelOptions(), "module 'no_such_module' cannot be imported"),
        ("json:loads", ModelOptions(size=(256, 128)), "cannot heed the option size; it takes none"),
        ("operator:length_hint", ModelOptions(), r"an array of shape \(\) for 1 crop; expected \(1, d\)"),
    ],
)
def test_what_is_no_model_is_refused(name: str, options: ModelOptions, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_model(name, options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("x.onnx", "no such file"),
        ("text.onnx", "onnxruntime cannot open it"),
        ("folder", "transformers cannot open it"),
        ("no/model", "not in the cache, and the Hub cannot be reached"),
    ],
)
def test_models_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, message: str
) -> None:
    for package in ("onnxruntime", "transformers"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("no network")
    Path("folder").mkdir()
    with pytest.raises(ModelError, match=f"model '{make}'.*{message}"):
        open_model(make, CPU)


@pytest.mark.parametrize(
    ("package", "model", "extra"),
    [
        ("torch", "folder", "models"),
        ("transformers", "folder", "models"),
        ("onnxruntime", "net.onnx", "onnx"),
    ],
)
def test_missing_package_names_its_extra(tmp_path: Path, package: str, model: str, extra: str) -> None:
    (tmp_path / "folder").mkdir()
    code = (
        f"import sys; sys.modules.update(torch=type(sys)('torch')); sys.modules[{package!r}] = None\n"
        "from entire_id.errors import MissingExtraError\n"
        "from entire_id.loading.models import open_model\n"
        f"try: open_model({model!r})\nexcept MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{package} is not installed; the model {model} needs it" in done.stdout
    assert f"pip install 'entire-id[{extra}]'" in done.stdout


@pytest.mark.parametrize("options", [{"size": (0, 3)}, {"device": "tpu"}, {"std": (1.0, 0.0, 1.0)}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} "):
        ModelOptions(**options)
