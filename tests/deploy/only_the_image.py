"""As `sitecustomize` of a process: whatever the image does not hold cannot be imported."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from pathlib import Path


class OnlyTheImage(MetaPathFinder):
    """Before all other finders; what belongs to no distribution (the standard library, our own) is theirs."""

    def __init__(self, requirements: Path) -> None:
        held = {line.split("==")[0] for line in requirements.read_text().splitlines()}
        held |= {"cifar-mlflow", "mlflow"}  # mlflow-skinny is the same code without its dependencies
        self._missing = {
            module
            for module, distributions in packages_distributions().items()
            if not held & {name.lower().replace("_", "-") for name in distributions}
        }

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._missing:
            raise ModuleNotFoundError(f"the image does not hold {name}", name=name)
        return None


sys.meta_path.insert(0, OnlyTheImage(Path(os.environ["REQUIREMENTS_OF_THE_IMAGE"])))
