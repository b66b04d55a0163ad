"""Let a process import only the packages of the image; the process loads this file as `sitecustomize`."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class ImagePackages(MetaPathFinder):
    """Refuse modules of distributions that the image does not contain.

    It comes before all other finders. Modules that belong to no distribution (the standard library, this
    repository) are left to the others.
    """

    def __init__(self, requirements: Path) -> None:
        present: set[str] = set()
        pending = [line.split("==")[0] for line in requirements.read_text().splitlines()]
        while pending:  # the versions installed here may differ, and need other packages
            name = canonicalize_name(pending.pop())
            if name not in present:
                present.add(name)
                pending += _dependencies(name)
        present |= {"cifar-mlflow", "mlflow"}  # mlflow-skinny has the same code without its dependencies
        self._missing = {
            module
            for module, distributions in packages_distributions().items()
            if not present & {canonicalize_name(name) for name in distributions}
        }

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._missing:
            raise ModuleNotFoundError(f"the image does not contain {name}", name=name)
        return None


def _dependencies(name: str) -> list[str]:
    try:
        requirements = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:  # needed by other versions only
        return []
    return [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]


sys.meta_path.insert(0, ImagePackages(Path(os.environ["IMAGE_REQUIREMENTS"])))
