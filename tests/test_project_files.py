"""The files at the top level agree with the code."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import click
import pytest
import yaml

from cifar_mlflow.config import DataConfig, ModelName, RecipeName, resolve_train_config
from cifar_mlflow.models.networks import BUILDERS
from cifar_mlflow.recipes import RECIPES, recipe_for_model
from cifar_mlflow.settings import Settings
from cifar_mlflow.verb_config import (
    EvaluateConfig,
    ExportConfig,
    ModelsConfig,
    RegisterConfig,
    RegistryConfig,
    ReviewVerbConfig,
    RunsConfig,
    TrainAndRegisterConfig,
    TrainVerbConfig,
)
from serving.config import ClassifyConfig, MonitorConfig, ServeConfig
from tests.test_cli import VERBS, command_of
from tuning.config import SEARCHED, SearchConfig, TuneAndPromoteConfig

ROOT = Path(__file__).parents[1]
# Without --model and --recipe.
RECIPE_OF_VERB = {"train": "resnet", "tune": "resnet", "review": "resnet", "demo": "demo"}


def test_conda_yaml_repeats_the_ranges_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    names = [re.match(r"\w+", item)[0] if isinstance(item, str) else "packages" for item in conda]  # type: ignore[index]
    assert names == ["python", "pip", "packages"]  # MLflow's uv and virtualenv managers accept nothing else
    assert conda[2]["pip"] == project["dependencies"]
    assert f">={conda[0].removeprefix('python=')}" == project["requires-python"]


def test_the_entry_points_are_verbs_of_the_command_line() -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    assert entry_points.keys() >= {"main", "tune", "evaluate", "demo"}
    for entry_point in entry_points.values():
        verb = re.fullmatch(r"exec python -m cifar_mlflow (\w+)", entry_point["command"])
        assert verb
        assert verb[1] in VERBS


@pytest.mark.parametrize(
    ("verb", "config_class"),
    [
        ("train", TrainVerbConfig),
        ("tune", TuneAndPromoteConfig),
        ("demo", TrainAndRegisterConfig),
        ("evaluate", EvaluateConfig),
        ("export", ExportConfig),
        ("register", RegisterConfig),
        ("promote", RegistryConfig),
        ("rollback", RegistryConfig),
        ("classify", ClassifyConfig),
        ("serve", ServeConfig),
        ("monitor", MonitorConfig),
        ("data", DataConfig),
        ("review", ReviewVerbConfig),
        ("runs", RunsConfig),
        ("models", ModelsConfig),
    ],
)
def test_each_setting_is_an_option_with_its_help_and_default(verb: str, config_class: type[Settings]) -> None:
    options = {param.name: param for param in command_of(verb).params}
    for name, field in config_class.model_fields.items():
        option = options[name]
        assert isinstance(option, click.Option)
        assert field.description
        assert field.description in (option.help or "")
        default = RECIPES.get(RECIPE_OF_VERB.get(verb, ""), {}).get(name, field.default)
        if verb == "tune" and name in SearchConfig.model_fields:
            default = field.default
        searched = verb == "tune" and name in SEARCHED
        if isinstance(default, int | float) and not isinstance(default, bool) and not searched:
            assert f"default {default}" in (option.help or "")


def test_each_model_can_be_built_and_has_a_recipe() -> None:
    assert BUILDERS.keys() == set(get_args(ModelName))
    assert RECIPES.keys() == set(get_args(RecipeName))
    for model in get_args(ModelName):
        assert recipe_for_model(model) in RECIPES
        assert resolve_train_config({"model": model}).recipe == recipe_for_model(model)


@pytest.mark.parametrize("recipe", get_args(RecipeName))
def test_a_recipe_holds_valid_settings_that_can_be_overridden(recipe: str) -> None:
    config = resolve_train_config({"recipe": recipe})
    assert config.model_dump(include=set(RECIPES[recipe])) == RECIPES[recipe]
    assert resolve_train_config({"recipe": recipe, "epochs": 3}).epochs == 3


def test_models_of_the_same_data_are_validated_on_the_same_images() -> None:
    """Or no version of another recipe could replace the champion: only such versions are compared."""
    splits = {
        (config.val_size, config.split_seed)
        for name in get_args(RecipeName)
        if (config := resolve_train_config({"recipe": name})).dataset != "folder"
    }
    assert len(splits) == 1


def test_the_makefile_has_the_targets_of_the_readme() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"(?:^|`)make (\w+)", readme, re.MULTILINE)) <= targets
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", readme, re.MULTILINE))
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_every_command_in_the_docs_has_valid_options() -> None:
    """Every option in the `cifar-mlflow` lines of README and docs exists."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    lines = [line for page in pages for line in page.read_text().splitlines()]
    commands = [match for line in lines if (match := re.match(r"\s*(?:\$ )?cifar-mlflow (\w+)(.*)", line))]
    assert commands
    for command in commands:
        verb, rest = command[1], command[2].split("#")[0]
        known = {name for param in command_of(verb).params for name in param.opts} | {"--help"}
        assert set(re.findall(r"--[a-z0-9-]+", rest)) <= known, command[0]
