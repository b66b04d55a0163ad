"""Read the YAML file of `--config`."""

import re
from pathlib import Path
from typing import Any

import yaml

from cifar_mlflow.errors import UsageError


class _Loader(yaml.SafeLoader):
    """Reads every value as text, like the command line; the config converts it to the type of the setting.

    YAML 1.1 would read 010 as 8, 1:30 as 90, 1_000 as 1000, and `no` as false. Only null is special.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the name is yaml's

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value).replace("-", "_") for key, _ in node.value if key.tag != _MERGE]
        for number, name in enumerate(names):
            if name in names[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.constructor.ConstructorError(problem=f"{name} is set twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file as text; `batch-size` and `batch_size` are the same name.

    Raises:
        UsageError: the file cannot be read, is not YAML, or sets a name twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"--config {path}, line {line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict | None):
        raise UsageError(f"--config {path} must hold lines of the form 'epochs: 10'; it holds {values!r:.40}")
    return {str(name).replace("-", "_"): value for name, value in (values or {}).items()}
