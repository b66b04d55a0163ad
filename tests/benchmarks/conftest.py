"""Fixtures of the benchmarks: a folder of images, and a stand-in for the peer's script."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.stand_in import SOURCE


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder of images in the working directory: two classes of plain colours."""
    for label, name in enumerate(("bright", "dark")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((32, 32, 3), 250 - 200 * label - i, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


@pytest.fixture
def script_file(tmp_path: Path) -> Path:
    """Write a script with the constructs of airbench94_muon.py."""
    file = tmp_path / "airbench94_muon.py"
    file.write_text(SOURCE)
    return file
