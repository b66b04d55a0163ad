"""Small data sets with known errors."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

CLASSES = ("blue", "green", "red")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three colours; each image has a pattern of its own."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 24), ("test", 8)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pattern = rng.integers(0, 80, (6, 6, 3))
                pattern[..., 2 - label] += 150
                image = Image.fromarray(pattern.astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
                image.save(folder / f"{number:02}.png")
    return root


def write_cifar10(folder: Path, **splits: tuple[np.ndarray, np.ndarray]) -> Path:
    """Write images, uint8 (N, 32, 32, 3), and labels of each split as the Hub's parquet files."""
    folder.mkdir()
    for split, (images, labels) in splits.items():
        encoded = []
        for pixels in images:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            encoded.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"img": encoded, "label": labels.tolist()})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder
