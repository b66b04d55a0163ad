"""The search space: which settings are searched, between which values, and when.

It is written in the form that a person writes in a YAML file, the default one included.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Self

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.errors import UsageError
from tuning.space_entry import SEARCHABLE, Entry, check_name, listed, parse

__all__ = ["SEARCHABLE", "Space"]

# One architecture of each family, and what moves accuracy on small images within a few epochs.
DEFAULT: dict[str, Any] = {
    "model": ["cnn", "fast", "resnet18", "vgg16"],
    "width": {"low": 0.5, "high": 1.5, "log": True},
    "dropout": {"low": 0.0, "high": 0.5},
    "crop_padding": {"low": 0, "high": 6},
    "flip": ["random", "alternating"],
    "cutout": {"low": 0, "high": 16, "step": 4},
    # Steps, so that it is off in some of the trials: it costs time.
    "brightness": {"low": 0.0, "high": 0.4, "step": 0.2},
    "contrast": {"low": 0.0, "high": 0.4, "step": 0.2},
    "batch_size": [64, 128, 256, 512, 1000],
    "optimizer": ["sgd", "adamw", "muon"],
    "lr": [
        {"low": 5e-3, "high": 0.5, "log": True, "when": {"optimizer": "sgd"}},
        {"low": 1e-4, "high": 1e-2, "log": True, "when": {"optimizer": "adamw"}},
        {"low": 0.02, "high": 0.6, "log": True, "when": {"optimizer": "muon"}},
    ],
    "aux_lr": {"low": 0.01, "high": 1.0, "log": True, "when": {"optimizer": "muon"}},
    # A recipe's momentum is its optimizer's, and another one is tried with the same model.
    "momentum": {"low": 0.5, "high": 0.97},
    # AdamW's is multiplied by a rate that is a hundred times smaller; Muon leaves only the head to it.
    "weight_decay": [
        {"low": 1e-5, "high": 5e-3, "log": True, "when": {"optimizer": "sgd"}},
        {"low": 1e-3, "high": 0.5, "log": True, "when": {"optimizer": "adamw"}},
        {"low": 1e-7, "high": 1e-3, "log": True, "when": {"optimizer": "muon"}},
    ],
    "label_smoothing": {"low": 0.0, "high": 0.2},
}


@dataclass(frozen=True)
class Space:
    """Entries in an order in which each comes after those that it depends on.

    A setting may have several entries, of which at most one applies to a trial.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def default(cls) -> Self:
        return cls._of(entry for setting, form in DEFAULT.items() for entry in parse(setting, form))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The space of a YAML file: its entries in place of those of the default space, or with
        `replace: true` without any others.

        Raises:
            UsageError: what is wrong with the file, in one line.
        """
        try:
            return cls._of_forms(_load(path))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None

    @classmethod
    def _of_forms(cls, forms: dict[str, Any]) -> Self:
        for name in forms:
            check_name(name, among=["replace"])
        alone = forms.pop("replace", False)
        if not isinstance(alone, bool):
            raise UsageError(f"replace: true or false (got {alone!r})")
        merged = forms if alone else {**DEFAULT, **forms}
        parsed = [
            entry for setting, form in merged.items() if form is not None for entry in parse(setting, form)
        ]
        space = cls._of(parsed)
        for entry in parsed:
            if entry.setting in forms and entry.setting not in space.settings:
                raise UsageError(
                    f"{entry.setting}: it applies where {entry.condition}, which never is in this space; "
                    "leave it out"
                )
        return space

    @classmethod
    def _of(cls, entries: Iterable[Entry]) -> Self:
        kept = _in_order(_without_the_impossible(_in_order(entries)))
        for i, entry in enumerate(kept):
            if any(entry.setting == other.setting and not entry.excludes(other) for other in kept[:i]):
                raise UsageError(
                    f"{entry.setting}: two entries apply to the same trial; give each a condition (when) "
                    "that excludes the others"
                )
        if not any(entry.is_searched for entry in kept):
            raise UsageError("nothing is left to search: no setting has more than one value")
        return cls(tuple(replace(entry, param=_param(entry, kept)) for entry in kept))

    def fixed(self, settings: dict[str, Any]) -> Self:
        """The space that is left where these settings are given; what is not in the space is ignored.

        They stay in it with their one value, so that it says by itself what its trials are.

        Args:
            settings: valid ones, of the types of `TrainConfig`.

        Raises:
            UsageError: nothing is left to search.
        """
        given = {name: value for name, value in settings.items() if name in self.settings}
        others = [entry for entry in self.entries if entry.setting not in given]
        return self._of([*others, *(listed(name, [value]) for name, value in given.items())])

    @property
    def settings(self) -> set[str]:
        return {entry.setting for entry in self.entries}

    @property
    def models(self) -> list[str]:
        """The architectures that a trial may have."""
        models = [model for entry in self.entries if entry.setting == "model" for model in entry.values or ()]
        return models or [TrainConfig.model_fields["model"].default]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna chooses, by its names for it."""
        return {entry.param: entry.domain for entry in self.entries if entry.is_searched}

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """The settings of a trial: those of the space that apply to it."""
        chosen: dict[str, Any] = {}
        for entry in self.entries:
            if entry.applies(chosen):
                chosen[entry.setting] = entry.choose(trial)
        return chosen

    def params_of(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The params with which `suggest` gives these settings, or None if it cannot.

        Args:
            settings: of a training, all of them. Those that are not in the space may have any value.
        """
        if self.misfit(settings):
            return None
        applying = self._applying(settings)
        return {entry.param: settings[entry.setting] for entry in applying if entry.is_searched}

    def others(self, settings: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """The settings with each other value of `name`, and in the middle of its range what depends on that.

        Args:
            settings: of a training, all of them.
        """
        found = []
        for entry in self._applying(settings):
            for value in entry.values or () if entry.setting == name else ():
                changed = {**settings, name: value}
                dependent = [each for each in self.entries if name in each.when and each.applies(changed)]
                found.append(changed | {each.setting: each.middle for each in dependent})
        return [changed for changed in found if changed[name] != settings[name]]

    def misfit(self, settings: dict[str, Any]) -> str | None:
        """Why the settings of a training lie outside of the space; None if they do not."""
        for entry in self._applying(settings):
            if not entry.contains(value := settings[entry.setting]):
                return f"{entry.setting} is {value}, and the space has {entry.describe()}"
        return None

    def _applying(self, settings: dict[str, Any]) -> list[Entry]:
        chosen: dict[str, Any] = {}
        applying = []
        for entry in self.entries:
            if entry.applies(chosen):
                chosen[entry.setting] = settings[entry.setting]
                applying.append(entry)
        return applying

    def grid(self) -> dict[str, list[Any]]:
        """All values of each param, for Optuna's GridSampler.

        Raises:
            UsageError: a param has a continuum of values, or exists only in some of the trials.
        """
        grid, problems = {}, []
        for entry in self.entries:
            if not entry.is_searched:
                continue
            if entry.when:
                problems.append(f"{entry.param} applies only where {entry.condition}")
            elif entry.values is None:
                problems.append(f"{entry.param} is any number from {entry.describe()}")
            else:
                grid[entry.param] = list(entry.values)
        if problems:
            raise UsageError(
                f"sampler: a grid needs listed values that all go together, but {'; '.join(problems)}. "
                "In the file for --space, list values (lr: [0.05, 0.1], or low, high and step), give what "
                "others depend on one value (optimizer: sgd), and leave out what else is conditional "
                "(width: null); or choose another --sampler"
            )
        return grid

    def to_dict(self) -> dict[str, Any]:
        """The space in JSON's types, and as `read` reads it together with `replace: true`."""
        forms: dict[str, list[Any]] = {}
        for entry in self.entries:
            forms.setdefault(entry.setting, []).append(entry.form())
        return {setting: form if len(form) > 1 else form[0] for setting, form in forms.items()}


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Entries by setting, in the order of the config, but each after those that it depends on."""
    by_setting: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: SEARCHABLE.index(entry.setting)):
        by_setting.setdefault(entry.setting, []).append(entry)
    for found in by_setting.values():
        for entry in found:
            for needed in entry.when:
                _check_listed(entry, needed, by_setting.get(needed, []))
    depends_on = {
        setting: sorted({needed for entry in found for needed in entry.when})
        for setting, found in by_setting.items()
    }
    try:
        return [entry for name in TopologicalSorter(depends_on).static_order() for entry in by_setting[name]]
    except CycleError as error:
        raise UsageError(
            f"{error.args[1][0]}: conditions in a circle: {' -> '.join(error.args[1])}"
        ) from None


def _check_listed(entry: Entry, needed: str, sources: list[Entry]) -> None:
    """That what an entry depends on is in the space, and a choice."""
    if not sources:
        raise UsageError(
            f"{entry.setting}: it applies where {entry.condition}, but the space has no {needed}; "
            f"add {needed}: [...], or leave it out ({entry.setting}: null)"
        )
    if not all(isinstance(source.domain, CategoricalDistribution) for source in sources):
        raise UsageError(
            f"{entry.setting}: it depends on {needed}, which is a range; list its values instead"
        )


def _without_the_impossible(entries: list[Entry]) -> list[Entry]:
    """Without entries that can never apply, and without conditions that always hold."""
    kept: list[Entry] = []
    for entry in entries:
        when = {}
        for needed, values in entry.when.items():
            sources = [other for other in kept if other.setting == needed]
            possible = dict.fromkeys(value for other in sources for value in other.values or ())
            always_set = any(not other.when for other in sources)
            holding = tuple(value for value in possible if value in values)
            if not (always_set and len(holding) == len(possible)):
                when[needed] = holding
        if all(when.values()):
            kept.append(replace(entry, when=when))
    return kept


def _param(entry: Entry, entries: list[Entry]) -> str:
    """`lr` if it is the setting's only entry; else `lr.sgd`, with what tells it from the others."""
    if sum(other.setting == entry.setting for other in entries) == 1:
        return entry.setting
    values = {needed: "+".join(map(str, values)) for needed, values in sorted(entry.when.items())}
    if len(values) == 1:
        return f"{entry.setting}.{next(iter(values.values()))}"
    return f"{entry.setting}." + ",".join(f"{needed}={text}" for needed, text in values.items())


class _Loader(yaml.SafeLoader):
    """Plain YAML loses all but the last of two entries of the same name, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"{name}: given twice; several entries of a setting are written as a list")
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    try:
        forms = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(forms, dict):
        raise UsageError(f"does not map settings to values (got {forms!r:.60})")
    return forms
