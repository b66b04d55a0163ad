"""Commands that a person is given to copy."""

import shlex
from typing import Any


def command_line(verb: str, settings: dict[str, Any]) -> str:
    """The command line with exactly these settings given, in their order.

    Args:
        settings: None, or a list of nothing, is one that is not given.
    """
    words = ["cifar-mlflow", verb]
    for name, value in settings.items():
        if value is None or value == []:
            continue
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        elif isinstance(value, bool):
            value = str(value).lower()
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
