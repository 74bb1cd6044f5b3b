from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NUM_PICTURES = {"cross_domain": 1, "quickstart": 2, "stream": 1}
NEEDS = {
    "cross_domain": ["accelerate", "matplotlib", "tensorboard", "torch", "transformers"],
    "stream": ["accelerate", "tensorboard", "torch", "transformers"],
}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of the notebook's machinery; the package is tested elsewhere
def test_notebook_runs_and_is_kept_without_outputs(path: Path, tmp_path: Path) -> None:
    for package in NEEDS.get(path.stem, []):
        pytest.importorskip(package)
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    printed = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("mAP" in str(output) for output in printed)
    assert sum("image/png" in output.get("data", {}) for output in printed) == NUM_PICTURES[path.stem]
