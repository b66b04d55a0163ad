"""Import a package of an optional extra."""

import importlib
from types import ModuleType

from cifar_mlflow.errors import UsageError


def import_extra(module: str, package: str, purpose: str) -> ModuleType:
    """Import `module`.

    Args:
        package: what `pip install` needs for it.
        purpose: what needs it, for the message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise UsageError(
            f"{purpose} needs the package {missing}, which is not installed: pip install '{package}'"
        ) from error
