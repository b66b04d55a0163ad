"""Run airbench94_muon.py (Keller Jordan, https://github.com/KellerJordan/cifar10-airbench) as a peer.

The user passes the published file in; its code is not part of this project. It is patched in memory: on a CPU
it computes in bfloat16 instead of half precision, without torch.compile, and its CUDA events become clocks.
Its network, optimizers, schedule, augmentation and test-time augmentation (six views) stay as they are.

Its own clock counts the initialization of the first layer, the epochs and the test-time augmentation. It is
paused during the evaluation after each epoch, which a training does not need.
"""

import contextlib
import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness import progress
from cifar_mlflow.config import SplitName
from cifar_mlflow.data import ImageDataset
from cifar_mlflow.errors import UsageError

NAME = "airbench94_muon"
EPOCHS = 8
BATCH_SIZE = 2000
NEEDED = ("CifarNet", "main", "print_training_details")


class Trained(NamedTuple):
    """One training of the peer: test accuracies as fractions, seconds without and with the augmentation."""

    accuracy: float
    accuracy_tta: float
    train_seconds: float
    seconds: float


class Script(NamedTuple):
    """The published file, and the length of its training."""

    file: Path
    epochs: int = EPOCHS
    batch_size: int = BATCH_SIZE

    def read(self) -> str:
        """Return the text of the file.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            return self.file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"peer: {self.file} cannot be read: {error}") from None

    @property
    def digest(self) -> str:
        """The first digits of the sha256 of the file, and of the training length if it was changed."""
        text = self.read()
        if (self.epochs, self.batch_size) != (EPOCHS, BATCH_SIZE):
            text += f"{self.epochs} epochs, batch {self.batch_size}"
        return hashlib.sha256(text.encode()).hexdigest()[:10]


class Change(NamedTuple):
    """A text that the file must contain `times` times, and its replacement."""

    was: str
    now: str
    times: int = 1


TO_CPU = (
    Change("@torch.compile\n", ""),
    Change('torch.device("cuda")', 'torch.device("cpu")'),
    Change(".half()", ".bfloat16()", times=2),
    Change("torch.cuda.Event(enable_timing=True)", "Clock()", times=2),
    Change("torch.cuda.synchronize()", "None"),
)


class Clock:
    """Stand in for `torch.cuda.Event` on a CPU, as far as the file uses it."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Clock") -> float:
        """Return milliseconds."""
        return 1000 * (end.at - self.at)


def patched(script: Script, device: str) -> str:
    """Return the text of the file, adapted to the device and to the length of the training.

    Raises:
        UsageError: a text to replace is missing, or occurs more often than in the published file.
    """
    source = script.read()
    changes = [
        # It reads its own file, to store it with its results.
        Change("with open(sys.argv[0]) as f:\n    code = f.read()\n", ""),
        Change(f"ceil({EPOCHS} * len(train_loader))", f"ceil({script.epochs} * len(train_loader))"),
        Change(f"    batch_size = {BATCH_SIZE}\n", f"    batch_size = {script.batch_size}\n"),
        *(TO_CPU if device == "cpu" else ()),
    ]
    for change in changes:
        if (found := source.count(change.was)) != change.times:
            raise UsageError(
                f"peer: this is not the expected {NAME}.py: {change.was.strip()!r} occurs {found} times "
                f"instead of {change.times}. Take the file of https://github.com/KellerJordan/cifar10-airbench"
            )
        source = source.replace(change.was, change.now)
    return source


class Airbench:
    """The published script, ready to train on the images of a data set.

    Args:
        folder: an empty folder; the images are written there in the script's own format.
        device: "cpu" or "cuda"; on a GPU the network is compiled as in the script.

    Raises:
        UsageError: the file cannot be read, or is not the expected one.
    """

    def __init__(self, script: Script, dataset: ImageDataset, folder: Path, device: str) -> None:
        self._folder = folder
        self._seen: dict[str, float] = {}
        self._names: dict[str, Any] = {"__name__": NAME, "Clock": Clock}
        exec(compile(patched(script, device), str(script.file), "exec"), self._names)
        if missing := [name for name in NEEDED if name not in self._names]:
            raise UsageError(f"peer: {script.file} defines no {', '.join(missing)}; it is not {NAME}.py")
        self._names["print_training_details"] = self._note
        write_images(dataset, folder / "cifar10")
        self._model = self._names["CifarNet"]().to(device).to(memory_format=torch.channels_last)
        if device == "cuda":
            self._model.compile(mode="max-autotune")

    def train(self, seed: int) -> Trained:
        """Train from new weights, and evaluate."""
        self._seen.clear()
        torch.manual_seed(seed)
        with contextlib.chdir(self._folder):  # the script looks for cifar10/ in the working directory
            accuracy_tta = self._names["main"](seed, self._model)
        return Trained(
            self._seen["val_acc"], accuracy_tta, self._seen["train_seconds"], self._seen["time_seconds"]
        )

    def _note(self, variables: dict[str, Any], is_final_entry: bool) -> None:
        """Stand in for the function that prints the script's table; it receives the script's variables."""
        self._seen |= {name: float(variables[name]) for name in ("val_acc", "time_seconds")}
        if not is_final_entry:
            self._seen["train_seconds"] = self._seen["time_seconds"]
            progress(f"    {NAME}, epoch {variables['epoch'] + 1}: {self._seen}")


def write_images(dataset: ImageDataset, folder: Path) -> None:
    """Write the images in the format in which the script caches them."""
    folder.mkdir(parents=True, exist_ok=True)
    names: tuple[SplitName, ...] = ("train", "test")
    for name in names:
        split = dataset.split(name)
        content = {
            "images": torch.tensor(split.images),
            "labels": torch.tensor(split.labels),
            "classes": list(dataset.classes),
        }
        torch.save(content, folder / f"{name}.pt")
