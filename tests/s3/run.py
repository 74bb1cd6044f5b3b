"""Run the tests of packing to and from URLs against an S3 server, in an environment of its own: `make test-s3`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-s3"
# s3fs goes with the fsspec of the same date; both it and moto build on botocore.
TOOLS = ("s3fs", "moto[server]", "pyftpdlib", "hypothesis", "pytest", "pytest-xdist")
TESTS = ("tests/shards/test_store.py", "tests/shards/test_engine_ray.py", "tests/test_remote.py")
# botocore wants an older one than the rest of the project is tested with.
LEFT_OPEN = ("python-dateutil",)


def make_environment() -> Path:
    """Return the Python of the environment, installing it once."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints = ENVIRONMENT / "constraints.txt"
        constraints.write_text("\n".join(line for line in lines if not line.startswith(LEFT_OPEN)) + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", constraints, "--editable", f"{ROOT}[ray]", *TOOLS], check=True)
        stamp.touch()
    return python


def main() -> None:
    """Make the environment and run there what the other tests leave out."""
    pytest = [make_environment(), "-m", "pytest", "-q", "-n", "2", "-k", "s3 or ray"]
    subprocess.run([*pytest, *TESTS], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
