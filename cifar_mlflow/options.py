"""Turn a config into the options of a verb: the config defines names, defaults, bounds and help."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cifar_mlflow.config import Settings, validate
from cifar_mlflow.config_file import read_config_file
from cifar_mlflow.environment import patience_seconds


def verb(
    name: str, config_class: type[Settings], defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command; the function receives the settings that were given as `given`.

    Args:
        defaults: defaults of this verb that differ from those of the config.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        def callback(config_file: str | None = None, **options: Any) -> None:
            patience_seconds()  # report an invalid value now, not at the first call to MLflow
            settings = {name: options.pop(name) for name in config_class.model_fields}
            given = {name: value for name, value in settings.items() if value is not None}
            from_file = read_config_file(Path(config_file)) if config_file is not None else {}
            function({**from_file, **given}, **options)

        params = getattr(function, "__click_params__", [])[::-1]
        config_file = click.Option(
            ["--config", "config_file"],
            metavar="FILE",
            help="YAML file with settings; options on the command line override it.",
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
    given: Mapping[str, Any], job: type[Settings], next_step: type[Settings]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide `given` into the settings of a long job and those of the step after it.

    Raises:
        UsageError: a setting of the next step is invalid; it is validated before the long job begins.
    """
    only_next = next_step.model_fields.keys() - job.model_fields.keys()
    of_job = {name: value for name, value in given.items() if name not in only_next}
    of_next = {name: value for name, value in given.items() if name in next_step.model_fields}
    validate(next_step, of_next)
    return of_job, of_next


def run_verb(ctx: click.Context, name: str, **options: Any) -> None:
    """Run another verb of the group that `ctx` belongs to; it may be defined in another package."""
    assert ctx.parent is not None
    group = ctx.parent.command
    assert isinstance(group, click.Group)
    command = group.get_command(ctx.parent, name)
    assert command is not None
    ctx.invoke(command, **options)


def switch(name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator for a flag that also accepts a value, since `mlflow run -P` always passes one."""
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
        for section in _sections(config_class):  # the first section that declares a setting lists it
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
        others = [param for param in self.get_params(ctx) if id(param) not in settings]
        titles: dict[str, list[click.Parameter]] = {
            (section.__doc__ or "").partition(":")[0]: [*options]
            for section, options in self.sections.items()
        }
        for title, params in {**titles, "Command": others}.items():
            with formatter.section(title):
                formatter.write_dl([record for param in params if (record := param.get_help_record(ctx))])


def _sections(config_class: type[Settings]) -> list[type[Settings]]:
    """Return the classes that declare the settings of a config, in the order of inheritance."""
    return [c for c in config_class.__mro__ if issubclass(c, Settings) and c is not Settings]


def _option(name: str, field: FieldInfo, default: Any) -> click.Option:
    """Return an option that passes its text to the config, which validates and converts it."""
    # Like `switch`: a flag that also accepts a value.
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
    """Return default and bounds for the help: `[default 30, >= 1]`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, key)}"
        for rule in field.metadata
        for key, sign in signs.items()
        if getattr(rule, key, None) is not None
    ]
    # A required setting, or one whose default is computed, has no fixed default to show.
    shown = [] if default in (None, (), PydanticUndefined) else [f"default {_text(default)}"]
    details = ", ".join([*shown, *bounds])
    return f"[{details}]" if details else ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
