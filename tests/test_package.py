from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest

import entire_id
from entire_id.errors import MissingExtraError


def imported_by(statement: str) -> set[str]:
    """Modules in memory after `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_import_brings_in_nothing_heavy() -> None:
    assert not {"torch", "datasets", "pyarrow", "numpy", "PIL"} & imported_by("import entire_id")


def test_help_brings_in_nothing_heavy() -> None:
    run = "import sys; sys.argv = ['entire-id', '--help']; import entire_id.cli.main"
    statement = f"{run}\ntry: entire_id.cli.main.main()\nexcept SystemExit: pass"
    assert not {"torch", "datasets", "pyarrow", "numpy", "PIL"} & imported_by(statement)


@pytest.mark.parametrize("name", ["PKSampler", "evaluate", "load", "pack", "verify"])
def test_public_names_load_without_torch(name: str) -> None:
    assert "torch" not in imported_by(f"import entire_id; entire_id.{name}")


WITHOUT_TORCH = """
import sys
from contextlib import suppress


class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoTorch())
import entire_id
from entire_id.errors import MissingExtraError

for name in entire_id.__all__:
    try:
        getattr(entire_id, name)
    except entire_id.EntireIdError as error:
        print(name, type(error).__name__, error, sep=": ")
"""


def test_without_torch_only_streams_and_training_are_missing_and_say_what_to_install() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert told == [
        f"{name}: MissingExtraError: torch is not installed; {name} needs it. Type: pip install 'entire-id[train]'"
        for name in ("PKStream", "StreamOptions", "open_trained", "train")
    ]


def test_public_names_exist_and_are_listed() -> None:
    for name in entire_id.__all__:
        with suppress(MissingExtraError):  # without torch
            assert getattr(entire_id, name)
    assert dir(entire_id) == sorted(entire_id.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'pak'"):
        entire_id.pak  # noqa: B018
