"""`cifar-mlflow serve` that notes nothing of what it does: what log and metrics cost shows beside it."""

from typing import Any

import serving.app.state
from cifar_mlflow.cli import main


class Nothing:
    """In place of the observer."""

    def __init__(self, *_: Any) -> None:
        pass

    def serving(self, *_: Any) -> None:
        pass

    def request_ended(self, *_: Any) -> None:
        pass

    def turned_away(self, *_: Any) -> None:
        pass

    def measure(self, *_: Any) -> None:
        pass

    def problems(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


if __name__ == "__main__":
    setattr(serving.app.state, "Telemetry", Nothing)  # noqa: B010  # mypy allows no other class there
    main()
