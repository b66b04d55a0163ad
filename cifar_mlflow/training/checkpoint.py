"""The checkpoint of a run: written atomically, read back as tensors and plain values only."""

import os
from pathlib import Path
from typing import Any

import torch

from cifar_mlflow.errors import CifarError

FORMAT = 1


class CheckpointFile:
    """One file that always holds a whole checkpoint: the newest one whose writing was completed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint.

        Raises:
            CifarError: the disk is full or cannot be written; the former checkpoint is still there.
        """
        unfinished = self.path.with_suffix(".unfinished")
        try:
            with unfinished.open("wb") as file:
                torch.save({**state, "format": FORMAT}, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch wraps a failed write into a RuntimeError
            unfinished.unlink(missing_ok=True)
            raise CifarError(
                f"the checkpoint {self.path} could not be written ({error.__cause__ or error}): "
                "free some space there, or choose another place with --cache-dir"
            ) from error

    def load(self) -> dict[str, Any]:
        """The state that was saved last, on the CPU.

        Raises:
            CifarError: there is none, or it is not one of ours.
        """
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise CifarError(f"there is no checkpoint at {self.path}") from None
        except Exception as error:  # whatever torch's reader makes of a damaged file
            raise CifarError(f"the checkpoint {self.path} cannot be read: {error}") from error
        if state.get("format") != FORMAT:
            raise CifarError(f"the checkpoint {self.path} was written by another version of cifar_mlflow")
        return state
