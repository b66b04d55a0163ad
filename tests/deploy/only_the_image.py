"""As `sitecustomize` of a process: whatever the image does not hold cannot be imported."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class OnlyTheImage(MetaPathFinder):
    """Before all other finders; what belongs to no distribution (the standard library, our own) is theirs."""

    def __init__(self, requirements: Path) -> None:
        held: set[str] = set()
        waiting = [line.split("==")[0] for line in requirements.read_text().splitlines()]
        while waiting:  # what is installed here may be of other versions, which need other packages
            name = canonicalize_name(waiting.pop())
            if name not in held:
                held.add(name)
                waiting += _needed_by(name)
        held |= {"cifar-mlflow", "mlflow"}  # mlflow-skinny is the same code without its dependencies
        self._missing = {
            module
            for module, distributions in packages_distributions().items()
            if not held & {canonicalize_name(name) for name in distributions}
        }

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._missing:
            raise ModuleNotFoundError(f"the image does not hold {name}", name=name)
        return None


def _needed_by(name: str) -> list[str]:
    try:
        needed = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:  # one that only other versions need
        return []
    return [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]


sys.meta_path.insert(0, OnlyTheImage(Path(os.environ["REQUIREMENTS_OF_THE_IMAGE"])))
