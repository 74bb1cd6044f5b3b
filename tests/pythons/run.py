"""Run the tests that need no torch under other Pythons: `make test-pythons`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.12", "3.13")
TOOLS = (
    "hypothesis",
    "ipykernel",
    "matplotlib",
    "nbclient",
    "nbformat",
    "numba",
    "pyftpdlib",
    "pytest",
    "pytest-xdist",
    "ray",
    "webdataset",
)


def find_python(version: str) -> Path | None:
    """Return an interpreter of that version: `python3.12` on the path, or one that pyenv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for candidate in filter(None, found):
        probe = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(probe, capture_output=True, text=True, check=False).stdout.strip() == version:
            return Path(candidate)
    return None


def run_tests(interpreter: Path, version: str) -> None:
    """Install the package and the tools into an environment of that version, and run the tests."""
    environment = ROOT / f".venv-py{version}"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", environment], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", "--editable", ROOT, *TOOLS], check=True)
    tests = [python, "-m", "pytest", "-n", "2", "-q", "--doctest-ignore-import-errors"]  # some modules are for torch
    subprocess.run(tests, check=True, cwd=ROOT)


def main() -> None:
    """Run every version that is installed, and say which is not."""
    ran = 0
    for version in VERSIONS:
        interpreter = find_python(version)
        if interpreter is None:
            print(f"Python {version} is not installed: skipped")
            continue
        print(f"Python {version}: {interpreter}", flush=True)
        run_tests(interpreter, version)
        ran += 1
    sys.exit(0 if ran else "no other Python is installed")


if __name__ == "__main__":
    main()
