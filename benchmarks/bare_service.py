"""`cifar-mlflow serve` without telemetry, to measure what telemetry costs.

It also leaves out the digests of files and statistics of pixels, which the request log and drift need.
"""

from collections.abc import Callable
from typing import Any

import serving.app.decoding
import serving.app.state
from cifar_mlflow.cli import main


class NoTelemetry:
    """Has every method of `Telemetry`; each does nothing and returns an empty list."""

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., list[str]]:
        return lambda *_: []


class NoDigest:
    """Stand in for the module hashlib."""

    @classmethod
    def sha256(cls, data: bytes) -> "NoDigest":
        return cls()

    def hexdigest(self) -> str:
        return ""


def replace(module: Any, **names: object) -> None:
    """Replace names of a module; fail if one no longer exists."""
    for name, value in names.items():
        if not hasattr(module, name):
            raise RuntimeError(f"{module.__name__} has no {name} to leave out")
        setattr(module, name, value)


if __name__ == "__main__":
    replace(serving.app.state, Telemetry=NoTelemetry)
    replace(serving.app.decoding, hashlib=NoDigest, image_statistics=lambda pixels: (0.0, 0.0))
    main()
