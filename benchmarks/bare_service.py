"""`cifar-mlflow serve` without telemetry, to measure what telemetry costs."""

from collections.abc import Callable

import serving.app.state
from cifar_mlflow.cli import main


class NoTelemetry:
    """Has every method of `Telemetry`; each does nothing and returns an empty list."""

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., list[str]]:
        return lambda *_: []


if __name__ == "__main__":
    setattr(serving.app.state, "Telemetry", NoTelemetry)  # noqa: B010 - mypy allows no other class there
    main()
