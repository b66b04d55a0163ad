"""Measure how long a start waits for images that an earlier start has already read.

Each measurement runs in a fresh process, from the call that opens the data set until every pixel of both
splits is in memory; the pixels are copied, because an unread memory map would look too fast. Imports are not
counted: torchvision's takes seconds. All files are in the page cache, as they are after a first start.

Ours is the second start of `load_dataset`. It is compared with the first start, which decodes the same files,
and with torchvision's CIFAR10, which verifies the md5 sums of a folder in the published layout at each start
and unpickles it. That folder is created here from random pixels, with a newer, faster pickle protocol.
"""

import hashlib
import os
import pickle
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.harness import Row, in_fresh_process, progress
from cifar_mlflow.config import DataConfig
from cifar_mlflow.data import CIFAR10_CLASSES, load_dataset
from cifar_mlflow.data.original import FOLDER
from cifar_mlflow.data.parquet import parquet_files
from cifar_mlflow.data.sources import SAMPLE_DIR

# File name and md5, as torchvision lists them.
Sums = list[tuple[str, str]]


def measure(copies: int = 10, repeats: int = 5) -> list[Row]:
    """Return two rows, for CIFAR-10 at CIFAR10_DIR or else for `copies` of the sample (6,000 photos)."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if "CIFAR10_DIR" in os.environ:
            data_dir, name = Path(os.environ["CIFAR10_DIR"]), "the files of CIFAR10_DIR"
        else:
            data_dir, name = write_parquet(root / "parquet", copies), "lossless parquet"
        cache_dir = root / "cache"
        first, count = in_fresh_process(our_start, data_dir, cache_dir)
        progress(f"  first start: {first:.2f} s")
        sums = write_pickles(root / FOLDER, count)
        second, peer = [], []
        for number in range(repeats):
            second.append(in_fresh_process(our_start, data_dir, cache_dir)[0])
            peer.append(in_fresh_process(torchvision_start, root, sums))
            progress(f"  {number + 1}/{repeats}: ours {second[-1]:.3f} s, torchvision {peer[-1]:.3f} s")
    ours, torchvisions = median(second), median(peer)
    return [
        Row(
            what=f"second start, {count:,} images in memory",
            ours=f"{ours:.2f} s (cache)",
            beside=f"{first:.1f} s (first start: decodes {name})",
            figure=ours,
            unit="s",
            at_most=0.5,
        ),
        Row(
            what=f"the same, {count:,} images",
            ours=f"{ours:.2f} s (cache)",
            beside=f"{torchvisions:.2f} s (torchvision's CIFAR10, each start)",
            figure=torchvisions / ours,
            unit="x",
        ),
    ]


def our_start(data_dir: Path, cache_dir: Path) -> tuple[float, int]:
    """Return the seconds and the number of images."""
    start = time.perf_counter()
    dataset = load_dataset(DataConfig(data_dir=data_dir, cache_dir=cache_dir))
    images = [np.array(dataset.split(name).images) for name in ("train", "test")]
    return time.perf_counter() - start, sum(map(len, images))


def torchvision_start(root: Path, sums: Sums) -> float:
    from torchvision.datasets import CIFAR10

    class Synthetic(CIFAR10):
        train_list = sums[1:-1]
        test_list = sums[-1:]
        meta = {"filename": sums[0][0], "key": "label_names", "md5": sums[0][1]}  # noqa: RUF012

    start = time.perf_counter()
    for train in (True, False):
        Synthetic(root, train=train)
    return time.perf_counter() - start


def write_parquet(folder: Path, copies: int) -> Path:
    """Write `copies` of the sample in the layout of the Hub's CIFAR-10."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    for split in ("train", "test"):
        tables = [pyarrow.parquet.read_table(path) for path in parquet_files(SAMPLE_DIR, split)]
        pyarrow.parquet.write_table(pyarrow.concat_tables(tables * copies), folder / f"{split}-0.parquet")
    return folder


def write_pickles(folder: Path, count: int) -> Sums:
    """Write random images in the published layout; return (file name, md5) of meta, training and test."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    contents = {"batches.meta": pickle.dumps({"label_names": list(CIFAR10_CLASSES)})}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (count // 6, 3 * 32 * 32), dtype=np.uint8)
        contents[name] = pickle.dumps({"data": pixels, "labels": [0] * len(pixels)})
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [(name, hashlib.md5(content).hexdigest()) for name, content in contents.items()]
