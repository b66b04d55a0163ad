"""Command lines that a user can copy."""

import shlex
from typing import Any

from cifar_mlflow.names import printable
from cifar_mlflow.redact import redact
from cifar_mlflow.settings import option_name


def command_line(verb: str, settings: dict[str, Any]) -> str:
    """Return the command line that gives exactly these settings, in their order and without passwords.

    It goes to logs, files and MLflow, so bytes of a path that are not UTF-8 are escaped: to run the command,
    such a path has to be typed anew.

    Args:
        settings: values by name; None and an empty list mean that the setting is not given, except that
            `weights` without a value replaces the weights of a recipe.
    """
    words = ["cifar-mlflow", verb]
    for name, value in without_passwords(settings).items():
        if name == "weights" and value is None:
            value = "none"
        if value is None or value == []:
            continue
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        elif isinstance(value, bool):
            value = str(value).lower()
        words += [option_name(name), str(value)]
    return printable(shlex.join(words))


def wrapped(command: str, width: int) -> str:
    """Break a command line before options; a line is longer than `width` only if one option is."""
    options: list[str] = []
    for word in map(shlex.quote, shlex.split(command)):
        if options and not word.startswith("--"):
            options[-1] += f" {word}"
        else:
            options.append(word)
    lines = options[:1]
    for option in options[1:]:
        if len(f"{lines[-1]} {option} \\") > width:
            lines.append(f"    {option}")
        else:
            lines[-1] += f" {option}"
    return " \\\n".join(lines)


def without_passwords(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the settings in which URLs, such as those of `mirrors`, have `***` as password."""

    def redacted(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [redacted(item) for item in value]
        return redact(value) if isinstance(value, str) else value

    return {name: redacted(value) for name, value in settings.items()}
