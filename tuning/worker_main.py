"""Start a worker: `python -m tuning.worker_main`."""

import sys
from collections.abc import Callable

from cifar_mlflow.interrupt import run_program


def _load() -> Callable[[], int]:
    from tuning.worker import main

    return main


if __name__ == "__main__":
    sys.exit(run_program(_load))
