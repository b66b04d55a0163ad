"""Start the command line."""

from collections.abc import Callable
from functools import partial

from cifar_mlflow.interrupt import run_program


def main() -> None:
    """Import the command line and run it; Ctrl-C before or after that leaves no traceback."""
    run_program(_load)


def _load() -> Callable[[], None]:
    from cifar_mlflow.cli import main as command_line

    return partial(command_line, prog_name="cifar-mlflow")


if __name__ == "__main__":
    main()
