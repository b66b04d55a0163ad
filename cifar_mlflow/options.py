"""The options of a verb, made from its config, where names, defaults, bounds and help are written down."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cifar_mlflow.config import Settings, patience_seconds, validate
from cifar_mlflow.errors import UsageError


def verb(
    name: str, config_class: type[Settings], defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command whose function receives, as `given`, the settings that the user gave.

    Args:
        defaults: defaults of this verb that differ from the config's own.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        def callback(config_file: str | None = None, **options: Any) -> None:
            patience_seconds()  # Report an invalid value now, not at the first call to MLflow.
            settings = {name: options.pop(name) for name in config_class.model_fields}
            given = {name: value for name, value in settings.items() if value is not None}
            function({**_read_config_file(config_file), **given}, **options)

        params = getattr(function, "__click_params__", [])[::-1]
        config_file = click.Option(
            ["--config", "config_file"], metavar="FILE", help="YAML file with settings; options win over it."
        )
        return SettingsCommand(
            name,
            callback=callback,
            params=[config_file, *params],
            help=function.__doc__,
            config_class=config_class,
            defaults=defaults or {},
        )

    return decorate


def split_settings(
    given: Mapping[str, Any], job: type[Settings], step_after: type[Settings]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide `given` into the settings of a long job and those of the step after it.

    Raises:
        UsageError: the settings of the step after are wrong; they are checked now, as the job is long.
    """
    only_after = step_after.model_fields.keys() - job.model_fields.keys()
    own = {name: value for name, value in given.items() if name not in only_after}
    after = {name: value for name, value in given.items() if name in step_after.model_fields}
    validate(step_after, after)
    return own, after


def run_verb(ctx: click.Context, name: str, **options: Any) -> None:
    """Run another verb of the group that `ctx` belongs to, which may be one of another package."""
    assert ctx.parent is not None
    group = ctx.parent.command
    assert isinstance(group, click.Group)
    command = group.get_command(ctx.parent, name)
    assert command is not None
    ctx.invoke(command, **options)


def _read_config_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict | None):
        raise UsageError(f"--config {path} must hold lines of the form 'epochs: 10', it holds {values!r:.40}")
    return {str(name).replace("-", "_"): value for name, value in (values or {}).items()}


def switch(name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that may stand alone, and also takes a value, since `mlflow run -P` always passes one."""
    return click.option(
        name,
        is_flag=False,
        flag_value="true",
        default=False,
        type=click.BOOL,
        metavar="[true|false]",
        help=text,
    )


class SettingsCommand(click.Command):
    """A command whose options are the settings of a config, listed by section."""

    def __init__(
        self, *args: Any, config_class: type[Settings], defaults: Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections: dict[type[Settings], list[click.Option]] = {}
        known: set[str] = set()
        for section in _sections(config_class):  # a setting that two declare is the first one's
            names = [name for name in inspect.get_annotations(section) if name not in known]
            if not names:
                continue
            known |= set(names)
            fields = {name: section.model_fields[name] for name in names}
            self.sections[section] = [
                _option(name, field, defaults.get(name, field.default)) for name, field in fields.items()
            ]
        self.params += [option for options in self.sections.values() for option in options]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        settings = {id(option) for options in self.sections.values() for option in options}
        own = [param for param in self.get_params(ctx) if id(param) not in settings]
        titles: dict[str, list[click.Parameter]] = {
            (section.__doc__ or "").split("\n")[0]: [*options] for section, options in self.sections.items()
        }
        for title, params in {**titles, "Command": own}.items():
            with formatter.section(title.rstrip(".")):
                formatter.write_dl([record for param in params if (record := param.get_help_record(ctx))])


def _sections(config_class: type[Settings]) -> list[type[Settings]]:
    """The classes that declare settings of a config, in the order in which they are inherited."""
    return [c for c in config_class.__mro__ if issubclass(c, Settings) and c is not Settings]


def _option(name: str, field: FieldInfo, default: Any) -> click.Option:
    """An option that hands its text to the config model, which checks and converts it."""
    # A switch may stand alone, and also takes a value, since `mlflow run -P` always passes one.
    switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if field.annotation is bool else {}
    return click.Option(
        [f"--{name.replace('_', '-')}", *(["--model"] if name == "model_uri" else [])],
        metavar=_metavar(field.annotation),
        help=f"{field.description} {_details(field, default)}".strip(),
        required=field.is_required(),
        **switch,
    )


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if annotation is bool:
        return "[true|false]"
    names = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}
    for candidate in (annotation, *get_args(annotation)):
        if candidate in names:
            return names[candidate]
        if get_origin(candidate) is Literal:
            return "|".join(get_args(candidate))
    return "TEXT"


def _details(field: FieldInfo, default: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, key)}"
        for rule in field.metadata
        for key, sign in signs.items()
        if getattr(rule, key, None) is not None
    ]
    # One that is required or asked for at the time of use is undefined here.
    shown = [] if default in (None, (), PydanticUndefined) else [f"default {_text(default)}"]
    details = ", ".join([*shown, *bounds])
    return f"[{details}]" if details else ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
