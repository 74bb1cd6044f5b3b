"""Models of every kind, small and drawn at random, against what the packages themselves compute."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entire_id.errors import ModelError, SamplingError
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


def test_network_saved_without_its_processor_needs_to_be_told_what_is_done_to_crops(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    told = {"size": (32, 16), "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
    for missing in told:
        options = ModelOptions(**{name: value for name, value in told.items() if name != missing}, device="cpu")
        with pytest.raises(ModelError, match=r"no preprocessor_config\.json, .* or give --size, --mean and --std"):
            open_model(folder, options)
    model = open_model(folder, ModelOptions(**told, device="cpu"))
    np.testing.assert_array_equal(model(CROPS), open_model(vit, SIZED)(CROPS))
    assert model.facts["mean"] == [0.5, 0.4, 0.3]
    with pytest.raises(ModelError, match="cannot heed the option mean, std; it takes device, size"):
        open_model(vit, ModelOptions(**told, device="cpu"))


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


OWN_CODE = """
import numpy as np
import warnings

def nothing(images): return None
def no_argument(): return np.ones((1, 3))
def silent(images): assert False
def own_error(images):
    from entire_id.errors import SamplingError
    raise SamplingError("own")
def one_by_one(image): return helper(image)
def helper(image):
    height = image.shape[0]
    return np.full((1, 3), height)
def inside_numpy(images): return np.stack([1, 2], axis=7)
def missing(images): import no_such_module
def memory(images): raise MemoryError
class Network:
    def __call__(self, images): return images.float()
network = Network()
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "it gave a NoneType that is no array"),
        ("no_argument", r"raised TypeError: no_argument\(\) takes 0 positional arguments but 1 was given$"),
        ("silent", r"raised AssertionError \(.*own_code\.py:7\)$"),
        ("one_by_one", r"raised AttributeError: 'list' object has no attribute 'shape' \(.*own_code\.py:13\)$"),
        ("inside_numpy", r"raised AxisError: axis 7 is out of bounds.* \(.*own_code\.py:15\)$"),
        ("missing", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("network", r"'list' object has no attribute 'float' \(.*own_code\.py:19\)$"),
    ],
)
def test_own_function_that_does_not_work_is_named_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, message: str
) -> None:
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(f"own_code:{function}")
    assert str(caught.value).startswith(f"model 'own_code:{function}': ")
    if function != "nothing":
        assert "called with a list of 1 (height, width, 3) uint8 arrays, it raised " in str(caught.value)
        assert type(caught.value.__cause__).__name__ in str(caught.value)


def test_errors_of_the_package_and_want_of_memory_pass_through_own_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    with pytest.raises(SamplingError, match=r"^own$"):
        open_model("own_code:own_error")
    with pytest.raises(MemoryError):
        open_model("own_code:memory")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(images:\n", r"importing it raised SyntaxError: .* \(.*broken_\d\.py:1\)$"),
        ("\nweights = open('gone')\n", r"importing it raised FileNotFoundError: .*'gone' \(.*broken_\d\.py:2\)$"),
        ("import no_such_module\n", r"cannot be imported \(No module named 'no_such_module'\)$"),
    ],
)
def test_own_module_that_cannot_be_imported_is_named_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    name = f"broken_{len(source) % 10}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=message):
        open_model(f"{name}:f")


def channel_means(images: list[np.ndarray]) -> np.ndarray:
    return np.stack([image.mean((0, 1)) for image in images])


def test_function_itself_is_taken_and_known_as_by_its_name(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "handed_in.py"
    source.write_text("import numpy as np\ndef mean(images): return np.stack([i.mean((0, 1)) for i in images])\n")
    monkeypatch.syspath_prepend(tmp_path)
    mean = importlib.import_module("handed_in").mean
    model = open_model(mean)
    assert (model.name, model.facts) == (open_model("handed_in:mean").name, open_model("handed_in:mean").facts)
    out = embed(packed, "query", mean, tmp_path / "features")
    with CropReader(packed, "query") as reader:
        expected = channel_means(reader.pixels_of(range(len(reader))))
    np.testing.assert_allclose(read_features(packed, "query", out).values, expected, rtol=1e-6)
    with pytest.raises(ModelError, match="cannot heed the option device; it takes none"):
        open_model(mean, CPU)


def test_function_that_nothing_tells_from_others_needs_a_version() -> None:
    def inner(images: list[np.ndarray]) -> np.ndarray:
        return channel_means(images)

    for function in (inner, lambda images: channel_means(images), partial(channel_means)):
        with pytest.raises(ModelError, match=r"expected a function at the top of a file.*version = "):
            open_model(function)
    names = set()
    for version in ("one", "two"):
        inner.version = version
        model = open_model(inner)
        names.add((model.name, model.facts["version"]))
    assert len(names) == 2
    assert model.name.partition("@")[0].endswith("<locals>.inner")


@pytest.mark.parametrize("what", [None, 7, np.zeros(3)])
def test_what_is_neither_a_name_nor_a_function_is_refused(what: object) -> None:
    with pytest.raises(ModelError, match="is no model; expected colour, a folder, .* or a function that takes a list"):
        open_model(what)


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
