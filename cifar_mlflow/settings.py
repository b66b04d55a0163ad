"""Define the base of all config models: fields with help and bounds, and one line for each wrong value."""

import difflib
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cifar_mlflow.errors import UsageError


def setting(default: Any, help_text: str, **constraints: Any) -> Any:
    """Return a field of a config; a callable `default` is called when a config is created."""
    source = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**source, description=help_text, **constraints)


class Settings(BaseModel):
    """Base of all configs: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)

# Pydantic's wording, as regular expressions, and ours.
_PLAIN = (
    (r"^Input should be ", "must be "),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"a valid integer.*", "a whole number"),
    (r"a valid number.*", "a number"),
    (r"a valid boolean.*", "true or false"),
)


def validate(config_class: type[S], values: dict[str, Any]) -> S:
    """Return `config_class(**values)`; turn pydantic's errors into one line each for the user.

    Raises:
        UsageError: unknown names, or values out of bounds.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        # A wrong `model` is reported twice, as an unknown name and for not matching `timm/NAME`: keep one,
        # which names the examples of the setting, too.
        issues = [issue for issue in error.errors() if issue["loc"][1:] != ("constrained-str",)]
        raise UsageError("\n".join(_message(config_class, issue) for issue in issues)) from None


def option_name(setting_name: str) -> str:
    """Return the option of a setting: `--batch-size`."""
    return f"--{setting_name.replace('_', '-')}"


def _message(config_class: type[Settings], issue: Any) -> str:
    where = str(issue["loc"][0]) if issue["loc"] else ""
    if issue["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, config_class.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(config_class.model_fields)}"
        return f"unknown setting {where}: {hint}"
    message = issue["msg"].removeprefix("Value error, ")
    for theirs, ours in _PLAIN:
        message = re.sub(theirs, ours, message)
    values = re.findall("'([^']*)'", issue["ctx"]["expected"]) if issue["type"] == "literal_error" else []
    close = difflib.get_close_matches(str(issue["input"]), values)
    hint = f": did you mean {' or '.join(sorted(close))}?" if close else ""
    if not where:
        return message
    option = option_name(where)
    if values and (examples := config_class.model_fields[where].examples):
        message = f"{message.replace(' or ', ', ')} or {', '.join(examples)}"
    if message.startswith("must be "):
        return f"{option} {message}, not {issue['input'] or repr(issue['input'])}{hint}"
    return f"{option}: {message} (got {issue['input']!r}){hint}"
