"""The search space: all its entries, the default space, and the YAML file that narrows or replaces it.

One entry, with its values and its condition, is in `tuning.space_entry`.
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
from tuning.space_entry import SEARCHABLE, Entry, check_name, listed_entry, parse_entries

__all__ = ["SEARCHABLE", "Space"]

# In the form of a YAML file: one architecture per family, and the settings that change the accuracy on small
# images within a few epochs.
DEFAULT: dict[str, Any] = {
    "model": ["cnn", "fast", "resnet18", "vgg16"],
    "width": {"low": 0.5, "high": 1.5, "log": True},
    "dropout": {"low": 0.0, "high": 0.5},
    "crop_padding": {"low": 0, "high": 6},
    "flip": ["random", "alternating"],
    "cutout": {"low": 0, "high": 16, "step": 4},
    # In steps, so that some trials do without it: it costs time.
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
    "bias_lr": {"low": 2e-5, "high": 0.1, "log": True, "when": {"optimizer": "muon"}},
    # Wide: a recipe's value suits its own optimizer, but others are tried with the same model.
    "momentum": {"low": 0.5, "high": 0.97},
    # AdamW multiplies it by a rate that is a hundred times smaller; Muon applies it to the head only.
    "weight_decay": [
        {"low": 1e-5, "high": 5e-3, "log": True, "when": {"optimizer": "sgd"}},
        {"low": 1e-3, "high": 0.5, "log": True, "when": {"optimizer": "adamw"}},
        {"low": 1e-7, "high": 1e-3, "log": True, "when": {"optimizer": "muon"}},
    ],
    "label_smoothing": {"low": 0.0, "high": 0.2},
}


@dataclass(frozen=True)
class Space:
    """Entries, each after those that it depends on.

    A setting may have several entries, but at most one applies to a trial.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def default(cls) -> Self:
        return cls._of(entry for setting, form in DEFAULT.items() for entry in parse_entries(setting, form))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the space of a YAML file.

        Its entries replace those of the default space for the same settings; with `replace: true`, they are
        the whole space.

        Raises:
            UsageError: one line on what is wrong with the file.
        """
        try:
            return cls._of_forms(_load(path))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None

    @classmethod
    def _of_forms(cls, forms: dict[str, Any]) -> Self:
        for name in forms:
            check_name(name, also=["replace"])
        replace_default = forms.pop("replace", False)
        if not isinstance(replace_default, bool):
            raise UsageError(f"replace: must be true or false (got {replace_default!r})")
        merged = forms if replace_default else {**DEFAULT, **forms}
        parsed = [
            entry
            for setting, form in merged.items()
            if form is not None
            for entry in parse_entries(setting, form)
        ]
        space = cls._of(parsed)
        for entry in parsed:
            if entry.setting in forms and entry.setting not in space.settings:
                raise UsageError(
                    f"{entry.setting}: its condition, {entry.condition}, is never met in this space; "
                    "leave it out"
                )
        return space

    @classmethod
    def _of(cls, entries: Iterable[Entry]) -> Self:
        kept = _sort(_simplify_conditions(_sort(entries)))
        for i, entry in enumerate(kept):
            if any(entry.setting == other.setting and not entry.excludes(other) for other in kept[:i]):
                raise UsageError(
                    f"{entry.setting}: two entries apply to the same trial; give each a condition (when) "
                    "that excludes the other"
                )
        if not any(entry.is_searched for entry in kept):
            raise UsageError("nothing is left to search: no setting has more than one value")
        return cls(tuple(replace(entry, param=_param_name(entry, kept)) for entry in kept))

    def fixed(self, settings: dict[str, Any]) -> Self:
        """Return the space in which these settings have one value each; others are ignored.

        The settings stay in the space, so that it fully describes its trials.

        Args:
            settings: valid values, of the types of `TrainConfig`.

        Raises:
            UsageError: nothing is left to search.
        """
        given = {name: value for name, value in settings.items() if name in self.settings}
        others = [entry for entry in self.entries if entry.setting not in given]
        return self._of([*others, *(listed_entry(name, [value]) for name, value in given.items())])

    @property
    def settings(self) -> set[str]:
        return {entry.setting for entry in self.entries}

    @property
    def models(self) -> list[str]:
        """The possible architectures of a trial."""
        models = [model for entry in self.entries if entry.setting == "model" for model in entry.values or ()]
        return models or [TrainConfig.model_fields["model"].default]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions of the searched params, by Optuna's names."""
        return {entry.param: entry.domain for entry in self.entries if entry.is_searched}

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Return the settings of a trial: those of the space that apply to it."""
        chosen: dict[str, Any] = {}
        for entry in self.entries:
            if entry.applies(chosen):
                chosen[entry.setting] = entry.choose(trial)
        return chosen

    def params_of(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Return the params from which `suggest` makes these settings, or None if there are none.

        Args:
            settings: all settings of a training. Those that are not in the space may have any value.
        """
        if self.misfit(settings):
            return None
        applying = self._applying(settings)
        return {entry.param: settings[entry.setting] for entry in applying if entry.is_searched}

    def others(self, settings: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """Return the settings with each other value of `name`.

        Settings that depend on it are in the middle of their range.

        Args:
            settings: all settings of a training.
        """
        found = []
        for entry in self._applying(settings):
            for value in entry.values or () if entry.setting == name else ():
                changed = {**settings, name: value}
                dependent = [each for each in self.entries if name in each.when and each.applies(changed)]
                found.append(changed | {each.setting: each.middle for each in dependent})
        return [changed for changed in found if changed[name] != settings[name]]

    def misfit(self, settings: dict[str, Any]) -> str | None:
        """Return why the settings of a training lie outside of the space, or None if they do not."""
        for entry in self._applying(settings):
            if not entry.contains(value := settings[entry.setting]):
                return f"{entry.setting} is {value}, but the space has {entry.describe()}"
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
        """Return all values of each param, for Optuna's GridSampler.

        Raises:
            UsageError: a param has a continuous range, or applies only to some of the trials.
        """
        grid, problems = {}, []
        for entry in self.entries:
            if not entry.is_searched:
                continue
            if entry.when:
                problems.append(f"{entry.param} applies only if {entry.condition}")
            elif entry.values is None:
                problems.append(f"{entry.param} is any number from {entry.describe()}")
            else:
                grid[entry.param] = list(entry.values)
        if problems:
            raise UsageError(
                f"--sampler: a grid needs listed values without conditions, but {'; '.join(problems)}. "
                "In the file for --space, list values (lr: [0.05, 0.1], or low, high and step), give one "
                "value to settings that others depend on (optimizer: sgd), and leave out other conditional "
                "settings (width: null); or choose another --sampler"
            )
        return grid

    def to_dict(self) -> dict[str, Any]:
        """Return the space in JSON's types; `read` reads it if `replace: true` is added."""
        forms: dict[str, list[Any]] = {}
        for entry in self.entries:
            forms.setdefault(entry.setting, []).append(entry.form())
        return {setting: form if len(form) > 1 else form[0] for setting, form in forms.items()}


def _sort(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries in the order of the config, but each after those that it depends on."""
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
            f"{error.args[1][0]}: its condition depends on itself: {' -> '.join(error.args[1])}"
        ) from None


def _check_listed(entry: Entry, needed: str, sources: list[Entry]) -> None:
    """Check that a setting that an entry depends on is in the space and has listed values."""
    if not sources:
        raise UsageError(
            f"{entry.setting}: it applies if {entry.condition}, but the space has no {needed}; "
            f"add {needed}: [...], or leave it out ({entry.setting}: null)"
        )
    if not all(isinstance(source.domain, CategoricalDistribution) for source in sources):
        raise UsageError(
            f"{entry.setting}: it depends on {needed}, which is a range; list the values of {needed} instead"
        )


def _simplify_conditions(entries: list[Entry]) -> list[Entry]:
    """Return the entries without those that never apply, and without conditions that are always met."""
    kept: list[Entry] = []
    for entry in entries:
        when = {}
        for needed, values in entry.when.items():
            sources = [other for other in kept if other.setting == needed]
            possible = dict.fromkeys(value for other in sources for value in other.values or ())
            always_set = any(not other.when for other in sources)
            matching = tuple(value for value in possible if value in values)
            if not (always_set and len(matching) == len(possible)):
                when[needed] = matching
        if all(when.values()):
            kept.append(replace(entry, when=when))
    return kept


def _param_name(entry: Entry, entries: list[Entry]) -> str:
    """Return `lr` for the setting's only entry, or `lr.sgd`, with its condition, for one of several."""
    if sum(other.setting == entry.setting for other in entries) == 1:
        return entry.setting
    values = {needed: "+".join(map(str, values)) for needed, values in sorted(entry.when.items())}
    if len(values) == 1:
        return f"{entry.setting}.{next(iter(values.values()))}"
    return f"{entry.setting}." + ",".join(f"{needed}={text}" for needed, text in values.items())


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys; plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"{name}: given twice; write several entries of a setting as a list")
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    try:
        forms = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(forms, dict):
        raise UsageError(f"must map settings to values (got {forms!r:.60})")
    return forms
