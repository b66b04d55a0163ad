"""Checkpoints: whole or not there at all, and never a pickle that runs code."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from cifar_mlflow.errors import CifarError
from cifar_mlflow.training.checkpoint import CheckpointFile


@pytest.fixture
def checkpoint(tmp_path: Path) -> CheckpointFile:
    return CheckpointFile(tmp_path / "checkpoint.pt")


def test_what_is_saved_comes_back(checkpoint: CheckpointFile) -> None:
    checkpoint.save({"epoch": 3, "weights": {"a": torch.arange(4.0)}, "history": [{"loss": 0.5}]})
    state = checkpoint.load()
    assert (state["epoch"], state["history"]) == (3, [{"loss": 0.5}])
    assert torch.equal(state["weights"]["a"], torch.arange(4.0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_one_clear_error_and_leaves_the_former_checkpoint(checkpoint: CheckpointFile) -> None:
    checkpoint.save({"epoch": 1})
    checkpoint.path.with_suffix(".unfinished").symlink_to("/dev/full")
    with pytest.raises(CifarError, match=r"could not be written.*No space left.*--cache-dir"):
        checkpoint.save({"epoch": 2, "weights": torch.zeros(100_000)})
    assert checkpoint.load()["epoch"] == 1
    assert [file.name for file in checkpoint.path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_is_named(checkpoint: CheckpointFile) -> None:
    checkpoint.save({"weights": torch.zeros(1000)})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:700])
    with pytest.raises(CifarError, match=r"checkpoint\.pt cannot be read"):
        checkpoint.load()


def test_code_in_a_checkpoint_is_not_run(checkpoint: CheckpointFile, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"format": 1, "payload": Attack()}, checkpoint.path, pickle_module=pickle)
    with pytest.raises(CifarError, match="cannot be read"):
        checkpoint.load()
    assert not (tmp_path / "attacked").exists()


def test_a_missing_checkpoint_is_said_so(checkpoint: CheckpointFile) -> None:
    with pytest.raises(CifarError, match="there is no checkpoint"):
        checkpoint.load()
