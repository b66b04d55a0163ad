"""Import a package of an optional extra, or say how to install it."""

import importlib
import importlib.metadata
import shlex
from pathlib import Path
from types import ModuleType

from cifar_mlflow.errors import UsageError

CHECKOUT = Path(__file__).parents[1]


def import_extra(module: str, install: str, purpose: str) -> ModuleType:
    """Import `module`.

    Args:
        install: the command that installs it, such as `install_command` returns.
        purpose: what needs it, for the message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise UsageError(
            f"{purpose} needs the package {missing}, which is not installed: {install}"
        ) from error


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this package, which no package index has."""
    if (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{CHECKOUT}[{extra}]')}"
    # Installed into another project: the folder that it came from may be gone, so name the extra's packages.
    requirements = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("cifar-mlflow") or ()
        if requirement.endswith(f'extra == "{extra}"')
    ]
    return f"pip install {shlex.join(requirements)}"
