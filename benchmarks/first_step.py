"""Run a program up to its first forward pass, and print the CPU seconds of the process until then.

`python -P first_step.py train ...` runs `cifar-mlflow train ...` of the release that is installed in the
environment, and `python -P first_step.py usual` the usual script. Nothing is imported here beforehand.
"""

import importlib.machinery
import sys
import time
from types import ModuleType
from typing import Any

HOOKED = "torch.nn.modules.module"


class HookAfterImport:
    """A finder that registers a hook for all networks as soon as torch can do so."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == HOOKED else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            module.register_module_forward_pre_hook(stop)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def stop(*_: object) -> None:
    print(f"CPU seconds: {time.process_time()}", flush=True)
    sys.exit()


def usual() -> None:
    """Start as a usual training script does: imports at the top, then an MLflow run."""
    import matplotlib.pyplot  # noqa: F401
    import mlflow
    import pandas  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch
    import torchvision

    mlflow.set_experiment("usual")
    with mlflow.start_run():
        network = torchvision.models.resnet18(num_classes=10)
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9).zero_grad()
        network(torch.zeros(128, 3, 32, 32))


if __name__ == "__main__":
    sys.meta_path.insert(0, HookAfterImport)
    if sys.argv[1] == "usual":
        usual()
    else:
        from cifar_mlflow.cli import main

        main(sys.argv[1:], prog_name="cifar-mlflow")
