"""Models that turn crops into features, opened by name: the colour descriptor, transformers, ONNX, or a function.

torch, transformers and onnxruntime are imported here alone, and only for a model that needs them. Nothing is unpickled:
weights are read from safetensors and ONNX files, and code that a model brings with it never runs.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from entire_id.errors import EntireIdError, MissingExtraError, ModelCodeError, ModelError
from entire_id.images import RgbImage
from entire_id.loading.colour import describe_colour
from entire_id.loading.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise, resize

__all__ = [
    "TRAINED_FILE",
    "Device",
    "Model",
    "ModelOptions",
    "Preprocessing",
    "check_no_run",
    "digest_files",
    "first_line",
    "is_trained",
    "open_model",
    "probed",
    "quiet",
    "transformer_folder",
    "transformer_identity",
]

TRAINED_FILE = "trained.json"
"""What the folder of a network that `entire-id train` wrote holds, and no other model does."""

Device = Literal["auto", "cpu", "cuda"]
"""Where a model runs; `auto` is the GPU where there is one that the package can use."""

Floats = npt.NDArray[np.float32]
Run = Callable[..., Any]

_CONFIG = "config.json"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_EXPECTED = "colour, a folder, a file .onnx, owner/name of the Hugging Face Hub, or module:function"
_PROBE_SIZE = 64, 32  # height, width of the grey crop that tells how long features are


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How a model is opened. What is left alone is the model's own; what a kind of model cannot heed is refused.

    Attributes:
        size: (height, width) in px to which crops are resized; ReID models mostly take (256, 128).
        device: see `Device`.
        revision: branch, tag or commit of a model on the Hub; its default branch by default.
        mean: of the channels R, G, B in [0, 1], which the input of an ONNX model (ImageNet's by default), or of a
            network of transformers whose processor was not saved, is reduced by.
        std: which it is then divided by.
    """

    size: tuple[int, int] | None = None
    device: Device = "auto"
    revision: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size {self.size!r} is not a height and a width of at least 1 px")
        if self.device not in get_args(Device):
            raise ValueError(f"device {self.device!r} is not one of {', '.join(get_args(Device))}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {self.std!r} is not above 0")

    def given(self) -> set[str]:
        """Return the names of the options that are not at their default."""
        return {field.name for field in fields(self) if getattr(self, field.name) != field.default}


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready to run.

    Attributes:
        name: what it is, the same wherever it lies: with the commit, or the SHA-256 of its files.
        dim: length of a feature.
        facts: what is done to a crop and which output is taken, in plain values.
        run: takes n crops, each (height, width, 3) uint8 RGB, and returns (n, dim) floats: an array, or a torch tensor
            on any device.
        device: where it runs.
        column: what else `run` takes of every crop, after the images: `camid` or `continent`; nothing where it is "".
        column_of: name of the data set whose numbers the column has; "" where it means the same in all.
    """

    name: str
    dim: int
    facts: Mapping[str, Any]
    run: Run
    device: str = "cpu"
    column: str = ""
    column_of: str = ""

    def knows(self, dataset: str) -> bool:
        """Tell whether it is told its column of the crops of a data set of that name: camera 3 is another elsewhere."""
        return bool(self.column) and self.column_of in ("", dataset)

    def caution(self, dataset: str) -> str:
        """Return what is to be said before it describes crops of a data set of that name; "" if nothing."""
        if not self.column or self.knows(dataset):
            return ""
        whose = f"{self.name} knows cameras of {self.column_of!r}, which say nothing of those of {dataset!r}"
        return f"{whose}: it is told none, and takes the mean of all"

    def __call__(self, images: Sequence[RgbImage], told: Sequence[int | str] | None = None) -> Floats:
        """Return (n, dim) float32, not necessarily finite, of n crops.

        Args:
            images: each (height, width, 3) uint8 RGB.
            told: n values of the model's column; None if it has none, or if they are not known.

        Raises:
            ModelError: the model gives something else than (n, dim) floats.
        """
        result = self.run(images, told) if self.column else self.run(images)
        return _checked(self.name, result, (len(images), self.dim))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From crops to what a network takes: resized, scaled, less the mean, divided by the deviation.

    Attributes:
        size: (height, width) in px; crops are resized with Pillow's bilinear filter, which averages when it shrinks.
        mean: of R, G, B.
        std: of R, G, B.
        scale: factor of the pixels' values, before mean and std.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1 / 255

    def __call__(self, images: Sequence[RgbImage]) -> Floats:
        """Return (n, 3, height, width) float32 of n crops, each (height, width, 3) uint8 RGB."""
        mean, std = (np.array(values) / (255 * self.scale) for values in (self.mean, self.std))
        batch = np.empty((len(images), 3, *self.size), np.float32)
        for number, image in enumerate(images):
            batch[number] = normalise(resize(image, *self.size), mean, std)
        return batch

    def facts(self) -> dict[str, Any]:
        """Return what is done, in plain values."""
        return {
            "size": list(self.size),
            "resize": "bilinear (Pillow)",
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def open_model(name: str | Path | Run, options: ModelOptions | None = None) -> Model:
    """Return the model of that name, after one run on a grey crop.

    Args:
        name: `colour`; the path of an `.onnx` file; `module:function`, a callable that is imported here; a folder, or
            `owner/name` on the Hugging Face Hub, that `transformers` can open. Or a function itself: it takes a list of
            n (height, width, 3) uint8 arrays and returns (n, d) floats. One that does not stand at the top of a file
            needs an attribute `version`, a string that tells it from others of its name.
        options: how to open it.

    Raises:
        ModelError: there is no such model, it cannot be opened or run, or it cannot heed an option.
        ModelCodeError: a function, or its module, raises an error.
        MissingExtraError: the packages that run it are not installed.

    Example:
        >>> open_model("colour").dim
        864
    """
    options = options or ModelOptions()
    takes: set[str] = set()
    if isinstance(name, str | Path):
        said = str(name)
        kind, takes = _kind(said)
    else:
        said = _name_of(name)
        kind = partial(_wrap_function, name)
    _check_heeded(said, options.given() - takes, takes)
    return kind(said, options)


def _check_heeded(name: str, refused: set[str], takes: set[str]) -> None:
    if refused:
        known = f"it takes {', '.join(sorted(takes))}" if takes else "it takes none"
        raise ModelError(name, f"it cannot heed the option {', '.join(sorted(refused))}; {known}")


def is_trained(name: str) -> bool:
    """Tell whether a model is a folder that `entire-id train` wrote."""
    return (Path(name).expanduser() / TRAINED_FILE).is_file()


def check_no_run(name: str) -> None:
    """Check that a model is not the folder of a training, which holds the network and much else.

    Raises:
        ModelError: it is; the network lies in it.
    """
    folder = Path(name).expanduser()
    try:
        stated = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError):
        return
    if not (isinstance(stated, dict) and stated.keys() >= {"settings", "weights", "content"}):
        return
    network = folder / "model"
    where = f"the network is {str(network)!r}"
    if not is_trained(str(network)):
        where = f"the network will be {str(network)!r}, once all steps are done"
    raise ModelError(name, f"it is the folder of a training; {where}")


def _kind(name: str) -> tuple[Callable[[str, ModelOptions], Model], set[str]]:
    """Return what opens the model, and which options that takes."""
    if name == "colour":
        return _open_colour, set()
    if name.endswith(".onnx"):
        return _open_onnx, {"size", "device", "mean", "std"}
    if Path(name).expanduser().is_dir():
        if is_trained(name):
            raise ModelError(name, "entire-id train wrote it; entire_id.open_trained(folder) opens it")
        check_no_run(name)
        return _open_transformer, {"size", "device", "mean", "std"}
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return _open_function, set()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _open_transformer, {"size", "device", "mean", "std", "revision"}
    raise ModelError(name, f"no such model; expected {_EXPECTED}")


def probed(
    name: str, run: Run, facts: Mapping[str, Any], device: str = "cpu", column: str = "", column_of: str = ""
) -> Model:
    """Return the model, with the length of its features as one grey crop gives it."""
    values = _array(name, run([np.full((*_PROBE_SIZE, 3), 127, np.uint8)]))
    if values.ndim != 2 or not values.shape[1]:
        raise ModelError(name, f"it gave an array of shape {values.shape} for 1 crop; expected (1, d)")
    dim = len(_checked(name, values, (1, values.shape[1]))[0])
    return Model(name, dim, facts, run, device, column, column_of)


def _checked(name: str, result: object, shape: tuple[int, int]) -> Floats:
    values = _array(name, result)
    if values.shape != shape:
        raise ModelError(name, f"it gave an array of shape {values.shape} for {shape[0]} crops; expected {shape}")
    if values.dtype.kind != "f":
        raise ModelError(name, f"it gave {values.dtype} values; expected floats")
    with np.errstate(over="ignore"):  # what is infinite then is refused with the key of its crop
        return values.astype(np.float32, copy=False)


def _array(name: str, result: Any) -> npt.NDArray[Any]:  # noqa: ANN401 whatever a function returns
    """Return what a model gave as an array; a torch tensor leaves its device and its gradient, without torch here."""
    try:
        if hasattr(result, "detach"):
            result = result.detach().cpu()
            if result.dtype.is_floating_point:
                result = result.float()  # numpy has no bfloat16
        values = np.asarray(result)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(name, f"it gave a {type(result).__name__} that is no array ({first_line(error)})") from error
    if values.dtype.kind == "O":
        raise ModelError(name, f"it gave a {type(result).__name__} that is no array; expected (n, d) floats")
    return values


def digest_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name if it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


# --- the colour descriptor and functions ------------------------------------------------------------------------------


def _open_colour(name: str, options: ModelOptions) -> Model:  # noqa: ARG001 it takes none
    return probed(name, describe_colour, {"output": "colour histograms of six stripes"})


def _open_function(name: str, options: ModelOptions) -> Model:  # noqa: ARG001 it takes none
    """Import `module:function`: this runs the user's own code, as the name asks for."""
    module_name, _, function_name = name.partition(":")
    with _own_code(name, "importing it"):
        try:
            module = importlib.import_module(module_name)
        except MissingExtraError:
            raise
        except ImportError as error:
            raise ModelError(name, f"module {module_name!r} cannot be imported ({first_line(error)})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(name, f"module {module_name!r} has no function {function_name!r}")
    return _of_function(name, function, module)


def _name_of(function: object) -> str:
    """Return `module:function` of a callable.

    Raises:
        ModelError: it is none.
    """
    if not callable(function):
        what = f"expected {_EXPECTED}, or a function that takes a list of (height, width, 3) uint8 arrays"
        raise ModelError(repr(function)[:80], f"a {type(function).__name__} is no model; {what}")
    kind = type(function)
    module = getattr(function, "__module__", None) or kind.__module__
    return f"{module}:{getattr(function, '__qualname__', kind.__qualname__)}"


def _wrap_function(function: Run, name: str, options: ModelOptions) -> Model:  # noqa: ARG001 it takes none
    """Return the model of a function that is handed in; what it is called must tell it from others."""
    module_name, _, function_name = name.partition(":")
    module = sys.modules.get(module_name)
    stands_in_a_file = getattr(module, function_name, None) is function and getattr(module, "__file__", None)
    if not stands_in_a_file and not getattr(function, "version", ""):
        raise ModelError(
            name,
            "expected a function at the top of a file, which takes a list of (height, width, 3) uint8 arrays; any "
            "other, such as that of a notebook, needs an attribute that tells it from others: "
            'function.version = "epoch 30"',
        )
    return _of_function(name, function, module)


def _of_function(name: str, function: Run, module: ModuleType | None) -> Model:
    def run(images: Sequence[RgbImage]) -> object:
        with _own_code(name, f"called with a list of {len(images)} (height, width, 3) uint8 arrays, it"):
            return function(images)

    source = getattr(module, "__file__", None)
    digest = digest_files([Path(source)]) if source else ""
    facts = {"output": name, "version": str(getattr(function, "version", ""))}
    model = probed(name, run, facts)
    return Model(f"{name}@sha256:{digest}", model.dim, facts, run)


@contextmanager
def _own_code(name: str, doing: str) -> Iterator[None]:
    """Turn what the user's own code raises into an error that says so.

    Raises:
        ModelCodeError: it raised anything but an error of this package, or for want of memory.
    """
    try:
        yield
    except (EntireIdError, MemoryError):
        raise
    except Exception as error:
        raise ModelCodeError(name, doing, error, _own_place(error)) from error


def _own_place(error: Exception) -> str:
    """Return file and line of the user's own code where an error was raised; "" if there is no such place."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in places if not place[0].startswith(("<frozen", __file__, *_INSTALLED))]
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _open_onnx(name: str, options: ModelOptions) -> Model:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", f"the model {name}", "onnx") from error
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(name, "no such file")
    providers = _providers(name, onnxruntime.get_available_providers(), options.device)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's errors share no other class
        raise ModelError(name, f"onnxruntime cannot open it ({first_line(error)})") from error
    shape = _input_shape(name, session)
    preprocessing = Preprocessing(
        _input_size(name, shape, options.size), options.mean or IMAGENET_MEAN, options.std or IMAGENET_STD
    )
    network = _OnnxNetwork(name, session, preprocessing, shape[0] if isinstance(shape[0], int) else None)
    output = network.first_matrix()
    weights = [path, *(path.with_name(path.name + end) for end in (".data", "_data"))]  # large ones lie beside it
    identity = f"{path.name}@sha256:{digest_files(file for file in weights if file.is_file())}"
    facts = {**preprocessing.facts(), "output": output}
    device = "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu"
    return probed(identity, lambda images: network.run(images, output), facts, device)


def _providers(name: str, available: Sequence[str], device: Device) -> list[str]:
    cuda = "CUDAExecutionProvider"
    if device == "cuda" and cuda not in available:
        raise ModelError(name, "device 'cuda' cannot be used: this onnxruntime runs on the CPU; see onnxruntime-gpu")
    return [cuda, "CPUExecutionProvider"] if device != "cpu" and cuda in available else ["CPUExecutionProvider"]


def _input_shape(name: str, session: Any) -> list[Any]:  # noqa: ANN401 onnxruntime has no types
    """Return the four dimensions of the only input; one that is free is no int."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ModelError(name, f"it has {len(inputs)} inputs; expected one, of shape (n, 3, height, width)")
    shape = list(inputs[0].shape or [])
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3) or inputs[0].type != "tensor(float)":
        what = f"its input is {inputs[0].type} of shape {shape}"
        raise ModelError(name, f"{what}; expected tensor(float) of shape (n, 3, height, width)")
    return shape


def _input_size(name: str, shape: Sequence[object], asked: tuple[int, int] | None) -> tuple[int, int]:
    """Return (height, width) of the input: what the model fixes, else what is asked for."""
    own = shape[2:]
    for length, wish in zip(own, asked or own, strict=True):
        if isinstance(length, int) and length != wish:
            raise ModelError(name, f"it takes crops of {own[0]} x {own[1]} px; size {asked} does not fit")
    if asked is None and not all(isinstance(length, int) for length in own):
        raise ModelError(name, "it takes crops of any size; say which: --size HEIGHTxWIDTH, such as 256x128")
    height, width = (length for length in asked or own if isinstance(length, int))
    return height, width


@dataclass(frozen=True, slots=True)
class _OnnxNetwork:
    """A session with what its input needs; `batch` is the number of crops that it is exported for, None for any."""

    name: str
    session: Any
    preprocessing: Preprocessing
    batch: int | None

    def first_matrix(self) -> str:
        """Return the name of the first output that is a matrix."""
        names: list[str] = [output.name for output in self.session.get_outputs()]
        results = self._run(self.preprocessing([np.full((*_PROBE_SIZE, 3), 127, np.uint8)] * (self.batch or 1)), names)
        matrices = [name for name, result in zip(names, results, strict=True) if np.ndim(result) == 2]
        if not matrices:
            shapes = ", ".join(f"{name} {np.shape(result)}" for name, result in zip(names, results, strict=True))
            raise ModelError(self.name, f"none of its outputs is of shape (n, d): {shapes}")
        return matrices[0]

    def run(self, images: Sequence[RgbImage], output: str) -> Floats:
        """Return (n, d) that output; a batch that must have a fixed length is filled up with its last crop."""
        step = self.batch or len(images)
        parts = []
        for start in range(0, len(images), step):
            part = list(images[start : start + step])
            filled = part + [part[-1]] * (step - len(part))
            parts.append(self._run(self.preprocessing(filled), [output])[0][: len(part)])
        return np.concatenate(parts)

    def _run(self, pixels: Floats, outputs: list[str]) -> list[Any]:
        try:
            results: list[Any] = self.session.run(outputs, {self.session.get_inputs()[0].name: pixels})
        except Exception as error:  # onnxruntime's errors share no other class
            raise ModelError(self.name, f"onnxruntime cannot run it ({first_line(error)})") from error
        return results


# --- transformers -----------------------------------------------------------------------------------------------------


def _open_transformer(name: str, options: ModelOptions) -> Model:
    for package in ("torch", "transformers"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, f"the model {name}", "models") from error
    import torch
    import transformers

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ModelError(name, "device 'cuda' cannot be used: torch sees no GPU here")
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    folder = transformer_folder(name, options.revision)
    preprocessing = _stated_preprocessing(name, folder, options)
    identity = transformer_identity(name, folder)
    processor, network, lacks_pooler = _load(transformers, torch, name, folder, has_processor=preprocessing is None)
    network.to(device).eval()
    if preprocessing is None and options.size is not None:
        preprocessing = _like_processor(processor, options.size)
    arguments = {"interpolate_pos_encoding": True} if _needs_interpolation(network, options.size) else {}
    transformer = _Transformer(name, torch, network, processor, preprocessing, arguments, lacks_pooler, device)
    facts = preprocessing.facts() if preprocessing else json.loads(processor.to_json_string())
    return probed(identity, transformer.run, {**facts, **arguments, "output": transformer.output()}, device)


def transformer_folder(name: str, revision: str | None) -> Path:
    """Return the folder of the model's files; those of the Hub are downloaded."""
    folder = Path(name).expanduser().resolve()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", _CONFIG, *_PROCESSORS]
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except HFValidationError as error:
        raise ModelError(name, "no such folder, and no name of the Hub (owner/name)") from error
    except LocalEntryNotFoundError as error:
        what = f"no such folder, and revision {revision or 'main'} of a model on the Hub is not in the cache"
        raise ModelError(name, f"{what}, and the Hub cannot be reached") from error
    except HfHubHTTPError as error:
        raise ModelError(name, f"no such folder, and the Hub says no ({first_line(error)})") from error
    return Path(found)


def transformer_identity(name: str, folder: Path) -> str:
    """Return what a model in a folder is, the same wherever it lies; of one that is not the Hub's, all is read."""
    if not Path(name).expanduser().is_dir():
        return f"{name}@{folder.name}"  # the folder of a snapshot has the name of its commit
    configs = (folder / config for config in (_CONFIG, *_PROCESSORS))
    files = [*folder.glob("*.safetensors"), *(path for path in configs if path.is_file())]
    return f"{folder.name}@sha256:{digest_files(files)}"


def _stated_preprocessing(name: str, folder: Path, options: ModelOptions) -> Preprocessing | None:
    """Return what the options say of a network whose processor was not saved with it; None where there is one.

    Raises:
        ModelError: they do not say all of it, or say what a processor says.
    """
    if not (folder / _CONFIG).is_file() or any((folder / config).is_file() for config in _PROCESSORS):
        _check_heeded(name, options.given() & {"mean", "std"}, {"size", "device"})
        return None
    if options.size is None or options.mean is None or options.std is None:
        what = f"there is no {_PROCESSORS[0]}, which says what is done to crops: save the processor beside the network"
        raise ModelError(name, f"{what}, or give --size, --mean and --std")
    return Preprocessing(options.size, options.mean, options.std)


def _load(
    transformers: ModuleType, torch: ModuleType, name: str, folder: Path, *, has_processor: bool
) -> tuple[Any, Any, bool]:
    """Return processor, network, and whether the weights lack those of the pooled output."""
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet(transformers):
            # Pillow's, for those of torchvision give other pixels, and what is installed must not change features.
            processors = transformers.AutoImageProcessor
            processor = processors.from_pretrained(folder, backend="pil", **safe) if has_processor else None
            network, loaded = transformers.AutoModel.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True, dtype=torch.float32, **safe
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(name, f"transformers cannot open it ({first_line(error)})") from error
    missing = sorted(loaded["missing_keys"])
    if others := [key for key in missing if "pooler" not in key.split(".")]:
        # transformers would draw them at random, anew in every run
        raise ModelError(name, f"its files lack {len(others)} weights, {others[0]!r} among them")
    return processor, network, bool(missing)


@contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """Keep transformers from printing its own bars and reports."""
    logging = transformers.utils.logging
    had_bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def _like_processor(processor: Any, size: tuple[int, int]) -> Preprocessing:  # noqa: ANN401 of many classes
    """Return preprocessing to that size, with scale, mean and deviation of the model's processor."""
    normalises = getattr(processor, "do_normalize", None)
    mean = tuple(processor.image_mean) if normalises else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if normalises else (1.0, 1.0, 1.0)
    return Preprocessing(size, mean, std, processor.rescale_factor if getattr(processor, "do_rescale", None) else 1.0)


def _needs_interpolation(network: Any, size: tuple[int, int] | None) -> bool:  # noqa: ANN401 of many classes
    """Tell whether the positions that the network was trained with must be stretched to crops of that size."""
    config = getattr(network.config, "vision_config", network.config)
    own = getattr(config, "image_size", None)
    own = (own, own) if isinstance(own, int) else tuple(own or ())
    return size is not None and size != own and "interpolate_pos_encoding" in _parameters(network)


def _parameters(network: Any) -> Mapping[str, object]:  # noqa: ANN401 of many classes
    return inspect.signature(getattr(network, "get_image_features", network.forward)).parameters


@dataclass(frozen=True, slots=True)
class _Transformer:
    """A network of transformers, with what is done before and after it.

    Attributes:
        name: for messages.
        torch: the package.
        network: in evaluation mode, on its device.
        processor: the model's own preprocessing; None if it was not saved.
        preprocessing: what replaces it, if anything does.
        arguments: which the network is called with, besides the pixels.
        lacks_pooler: the pooled output has no weights.
        device: where it runs.
    """

    name: str
    torch: ModuleType
    network: Any
    processor: Any
    preprocessing: Preprocessing | None
    arguments: Mapping[str, bool]
    lacks_pooler: bool
    device: str

    def run(self, images: Sequence[RgbImage]) -> Floats:
        """Return (n, d) float32 of n crops."""
        output = self._forward(images)
        chosen = output if self.torch.is_tensor(output) else self._pooled(output)
        if chosen is None:
            chosen = output.last_hidden_state[:, 0]
        values: Floats = chosen.flatten(1).float().cpu().numpy()
        return values

    def output(self) -> str:
        """Return the name of the output that is taken.

        Raises:
            ModelError: there is none that could be, or the network does not take crops of that size.
        """
        try:
            output = self._forward([np.full((*_PROBE_SIZE, 3), 127, np.uint8)])
        except RuntimeError as error:
            size = f" on crops of {self.preprocessing.size} px" if self.preprocessing else ""
            raise ModelError(self.name, f"it cannot be run{size} ({first_line(error)})") from error
        if hasattr(self.network, "get_image_features"):
            return "get_image_features"
        if self._pooled(output) is not None:
            return "pooler_output"
        tokens = getattr(output, "last_hidden_state", None)
        if tokens is None or tokens.ndim != 3:
            raise ModelError(self.name, "it has neither a pooled output nor tokens")
        return "last_hidden_state[:, 0]"

    def _pooled(self, output: Any) -> Any:  # noqa: ANN401 a tensor, of a package that may be missing
        return None if self.lacks_pooler else getattr(output, "pooler_output", None)

    def _forward(self, images: Sequence[RgbImage]) -> Any:  # noqa: ANN401 of many classes
        call = getattr(self.network, "get_image_features", self.network)
        pixels = self.torch.from_numpy(self._pixels(images)).to(self.device)
        try:
            with self.torch.inference_mode():
                return call(pixel_values=pixels, **self.arguments)
        except (ValueError, TypeError) as error:
            raise ModelError(self.name, f"it cannot be run on crops alone ({first_line(error)})") from error

    def _pixels(self, images: Sequence[RgbImage]) -> Floats:
        if self.preprocessing is not None:
            return self.preprocessing(images)
        try:
            batch = self.processor(list(images), input_data_format="channels_last", return_tensors="np")
        except ValueError as error:
            what = f"its processor makes no batch of the crops ({first_line(error)})"
            raise ModelError(self.name, f"{what}; try --size HEIGHTxWIDTH") from error
        return np.asarray(batch["pixel_values"], np.float32)
