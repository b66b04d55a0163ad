"""Read the files in deploy/ and run the tools that check them."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def check_with(tool: str, *arguments: str | Path, package: str) -> None:
    """Run a checker in the root of the repository; skip the test if it is not installed."""
    binary = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip(f"{tool} is not installed ({package})")
    done = subprocess.run(
        [binary, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
