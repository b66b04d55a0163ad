"""Turn a config into the options of a verb: the config defines names, defaults, bounds and help."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.config_file import read_config_file
from cifar_mlflow.environment import patience_seconds
from cifar_mlflow.recipes import RECIPES, recipe_for_model
from cifar_mlflow.settings import Settings, option_name, validate

# The former name of --model-uri, still accepted; in `train` and `tune`, --model is an architecture.
OLD_SPELLING = "--model"


def verb(
    name: str,
    config_class: type[Settings],
    defaults: Mapping[str, Any] | None = None,
    *,
    common: tuple[str, ...] = (),
    hidden: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command; the function's first argument is a dict of the given settings.

    Args:
        defaults: defaults of this verb that differ from those of the config, as values or in words.
        common: names of the options that most people want, which the help lists first.
        hidden: settings that are accepted but have no effect here, so that the help leaves them out.
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
            common=common,
            hidden=hidden,
        )

    return decorate


def recipe_defaults() -> dict[str, str]:
    """Return the default of each setting that a recipe sets, in words: `30 (fast, demo 8)`.

    The first value is that of the default recipe; each other value follows the names of its recipes.
    """
    usual_recipe = RECIPES[recipe_for_model(TrainConfig.model_fields["model"].default)]
    texts = {}
    for setting_name in sorted({name for values in RECIPES.values() for name in values}):
        default = TrainConfig.model_fields[setting_name].default
        usual = usual_recipe.get(setting_name, default)
        others: dict[Any, list[str]] = {}
        for recipe, values in RECIPES.items():
            if (value := values.get(setting_name, default)) != usual:
                others.setdefault(value, []).append(recipe)
        listed = "; ".join(f"{', '.join(recipes)} {value}" for value, recipes in others.items())
        texts[setting_name] = f"{usual} ({listed})" if listed else str(usual)
    return texts | {"model": f"{usual_recipe['model']}, or that of --recipe"}


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
    """A command whose options are the settings of a config, listed by section; arguments as for `verb`."""

    def __init__(
        self,
        *args: Any,
        config_class: type[Settings],
        defaults: Mapping[str, Any],
        common: tuple[str, ...],
        hidden: tuple[str, ...],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.common = common
        self.sections: dict[type[Settings], list[click.Option]] = {}
        known: set[str] = set()
        for section in _sections(config_class):  # the first section that declares a setting lists it
            names = [name for name in inspect.get_annotations(section) if name not in known]
            if not names:
                continue
            known |= set(names)
            fields = {name: section.model_fields[name] for name in names}
            self.sections[section] = [
                _option(name, field, defaults.get(name, field.default), hidden=name in hidden)
                for name, field in fields.items()
            ]
        self.params += [option for options in self.sections.values() for option in options]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        params = {str(param.name): param for param in self.get_params(ctx)}
        listed: dict[str, list[str]] = {"Most used": [*self.common]}
        for section, options in self.sections.items():
            title = (section.__doc__ or "").partition(":")[0]
            listed[title] = [str(option.name) for option in options if option.name not in self.common]
        known = {name for names in listed.values() for name in names}
        listed["Command"] = [name for name in params if name not in known]
        for title, names in listed.items():
            if records := [record for name in names if (record := params[name].get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(records)


def _sections(config_class: type[Settings]) -> list[type[Settings]]:
    """Return the classes that declare the settings of a config, in the order of inheritance."""
    return [c for c in config_class.__mro__ if issubclass(c, Settings) and c is not Settings]


class SettingOption(click.Option):
    """The option of a setting; the help leaves out its old spelling."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0].replace(f", {OLD_SPELLING} ", " "), record[1])


def _option(name: str, field: FieldInfo, default: Any, *, hidden: bool) -> click.Option:
    """Return an option that passes its text to the config, which validates and converts it."""
    # Like `switch`: a flag that also accepts a value.
    switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if field.annotation is bool else {}
    metavar = _metavar(field.annotation)
    values = metavar.strip("[]").split("|") if "|" in metavar else []
    return SettingOption(
        [option_name(name), *([OLD_SPELLING] if name == "model_uri" else [])],
        metavar=metavar,
        help=f"{field.description} {_details(field, default)}".strip(),
        required=field.is_required(),
        hidden=hidden,
        shell_complete=lambda ctx, param, incomplete: [
            value for value in values if value.startswith(incomplete)
        ],
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
