"""The checkpoint of a run: written atomically, and read back as tensors and plain values only."""

import os
from pathlib import Path
from typing import Any

import torch

from cifar_mlflow.errors import CifarError
from cifar_mlflow.files import atomic_write

FORMAT = 1


class CheckpointError(CifarError):
    """A checkpoint could not be written."""


class CheckpointFile:
    """A file that always holds a complete checkpoint: the last one that was written completely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; only the user may read it, since its settings may hold a password.

        Raises:
            CheckpointError: the disk is full or cannot be written; the previous checkpoint is still there.
        """
        try:
            with atomic_write(self.path, private=True) as temporary, temporary.open("wb") as file:
                torch.save({**state, "format": FORMAT}, file)
                file.flush()
                os.fsync(file.fileno())  # or a power failure after the rename could leave an empty file
        except (CifarError, RuntimeError) as error:  # torch turns an OSError into its own
            cause = error.__cause__ or error.__context__ or error  # the OSError
            elsewhere = "" if self.path.exists() else ", or choose another place with --cache-dir"
            raise CheckpointError(
                f"the checkpoint {self.path} could not be written ({cause}): free some space there{elsewhere}"
            ) from error

    def load(self) -> dict[str, Any]:
        """Return the state that was saved last, on the CPU.

        Raises:
            CifarError: there is no checkpoint, or it is damaged or of another version.
        """
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise CifarError(f"there is no checkpoint at {self.path}") from None
        except Exception as error:  # torch raises errors of many types for a damaged file
            raise CifarError(f"the checkpoint {self.path} cannot be read: {error}") from error
        if state.get("format") != FORMAT:
            raise CifarError(f"the checkpoint {self.path} was written by another version of cifar_mlflow")
        return state
