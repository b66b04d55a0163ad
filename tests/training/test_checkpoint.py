"""Checkpoints are complete or absent, private, and never a pickle that runs code."""

import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cifar_mlflow.errors import CifarError
from cifar_mlflow.training.checkpoint import CheckpointFile


@pytest.fixture
def checkpoint(tmp_path: Path) -> CheckpointFile:
    return CheckpointFile(tmp_path / "checkpoint.pt")


def test_a_saved_state_is_loaded_unchanged(checkpoint: CheckpointFile) -> None:
    checkpoint.save({"epoch": 3, "weights": {"a": torch.arange(4.0)}, "history": [{"loss": 0.5}]})
    state = checkpoint.load()
    assert (state["epoch"], state["history"]) == (3, [{"loss": 0.5}])
    assert torch.equal(state["weights"]["a"], torch.arange(4.0))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse to write files beyond `size` bytes, as on a full disk."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, previous[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)


def test_a_failed_write_is_one_clear_error_and_keeps_the_previous_checkpoint(
    checkpoint: CheckpointFile,
) -> None:
    checkpoint.save({"epoch": 1})
    with (
        file_size_limit(50_000),
        pytest.raises(CifarError, match=r"checkpoint\.pt could not be written.*: free some space there$"),
    ):
        checkpoint.save({"epoch": 2, "weights": torch.zeros(100_000)})
    assert checkpoint.load()["epoch"] == 1
    assert [file.name for file in checkpoint.path.parent.iterdir()] == ["checkpoint.pt"]


def test_without_a_checkpoint_another_place_is_possible(checkpoint: CheckpointFile) -> None:
    with file_size_limit(50_000), pytest.raises(CifarError, match="choose another place with --cache-dir"):
        checkpoint.save({"weights": torch.zeros(100_000)})
    assert not checkpoint.path.exists()


def test_only_the_user_can_read_a_checkpoint(checkpoint: CheckpointFile) -> None:
    """Its settings contain the mirrors, whose addresses may contain passwords."""
    checkpoint.save({"config": {"mirrors": ["http://alice:secret@host/archive"]}})
    assert checkpoint.path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_checkpoint_is_named(checkpoint: CheckpointFile) -> None:
    checkpoint.save({"weights": torch.zeros(1000)})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:700])
    with pytest.raises(CifarError, match=r"checkpoint\.pt cannot be read"):
        checkpoint.load()


def test_code_in_a_checkpoint_is_not_executed(checkpoint: CheckpointFile, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"format": 1, "payload": Attack()}, checkpoint.path, pickle_module=pickle)
    with pytest.raises(CifarError, match="cannot be read"):
        checkpoint.load()
    assert not (tmp_path / "attacked").exists()


def test_a_missing_checkpoint_is_named(checkpoint: CheckpointFile) -> None:
    with pytest.raises(CifarError, match="there is no checkpoint"):
        checkpoint.load()
