"""One entry of a search space: a setting, its possible values and its condition; and its form in YAML."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter, ValidationError

from cifar_mlflow.config import (
    MODELS_WITH_DROPOUT,
    MODELS_WITH_WIDTH,
    AugmentConfig,
    ModelConfig,
    OptimizeConfig,
    TrainConfig,
)
from cifar_mlflow.errors import UsageError
from cifar_mlflow.settings import validate

# Initial weights, length, seed and precision would make trials incomparable.
NOT_SEARCHABLE = ("weights", "epochs", "seed", "precision")
CONFIG_OF = {
    name: config
    for config in (ModelConfig, AugmentConfig, OptimizeConfig)
    for name in config.model_fields
    if name not in NOT_SEARCHABLE
}
SEARCHABLE = tuple(CONFIG_OF)

MODELS_WITH = {"width": MODELS_WITH_WIDTH, "dropout": MODELS_WITH_DROPOUT}
RANGE_KEYS = ("low", "high", "log", "step")

Domain = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Entry:
    """The possible values of a setting in trials that meet a condition.

    Attributes:
        when: the condition: each setting named here must have one of its values.
        param: Optuna's name for the entry.
    """

    setting: str
    domain: Domain
    when: Mapping[str, tuple[Any, ...]]
    param: str

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All possible values, or None for a continuous range."""
        domain = self.domain
        if isinstance(domain, CategoricalDistribution):
            return domain.choices
        if domain.log or domain.step is None:
            return None
        low, high, step = (Decimal(str(number)) for number in (domain.low, domain.high, domain.step))
        number = int if isinstance(domain, IntDistribution) else float
        return tuple(number(low + i * step) for i in range(int((high - low) / step) + 1))

    @property
    def is_searched(self) -> bool:
        """Return whether there is more than one value."""
        return not self.domain.single()

    @property
    def condition(self) -> str:
        """`when` as text."""
        return " and ".join(
            f"{setting} is {' or '.join(map(str, values))}" for setting, values in self.when.items()
        )

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        return all(setting in chosen and chosen[setting] in values for setting, values in self.when.items())

    def excludes(self, other: "Entry") -> bool:
        """Return whether the two entries never apply to the same trial."""
        common = self.when.keys() & other.when.keys()
        return any(not set(self.when[setting]) & set(other.when[setting]) for setting in common)

    def contains(self, value: Any) -> bool:
        """Return whether the entry has this value of its setting."""
        domain = self.domain
        if isinstance(domain, CategoricalDistribution):
            return value in domain.choices
        steps = (value - domain.low) / domain.step if domain.step else 0
        return domain.low <= value <= domain.high and abs(steps - round(steps)) < 1e-8

    @property
    def middle(self) -> Any:
        """The middle of the range, on a logarithmic scale for `log`; of a list, the first value."""
        domain = self.domain
        if isinstance(domain, CategoricalDistribution):
            return domain.choices[0]
        value = math.sqrt(domain.low * domain.high) if domain.log else (domain.low + domain.high) / 2
        if domain.step:
            value = domain.low + round((value - domain.low) / domain.step) * domain.step
        if isinstance(domain, IntDistribution):
            return round(value)
        return min(max(float(f"{value:.3g}"), domain.low), domain.high)

    def choose(self, trial: optuna.trial.BaseTrial) -> Any:
        """Return the value of a trial, which Optuna suggests."""
        domain = self.domain
        if isinstance(domain, CategoricalDistribution):
            if not self.is_searched:
                return domain.choices[0]
            return trial.suggest_categorical(self.param, domain.choices)
        if isinstance(domain, IntDistribution):
            return trial.suggest_int(self.param, domain.low, domain.high, step=domain.step, log=domain.log)
        return trial.suggest_float(self.param, domain.low, domain.high, step=domain.step, log=domain.log)

    def form(self) -> Any:
        """Return the entry as it is written in YAML; the inverse of `parse_entries`."""
        domain, form = self.domain, dict[str, Any]()
        if isinstance(domain, CategoricalDistribution):
            if not self.when:
                return _short(domain.choices)
            form["values"] = list(domain.choices)
        else:
            form |= {"low": domain.low, "high": domain.high}
            if domain.log:
                form["log"] = True
            elif domain.step and not (isinstance(domain, IntDistribution) and domain.step == 1):
                form["step"] = domain.step
        if self.when:
            form["when"] = {setting: _short(values) for setting, values in self.when.items()}
        return form

    def describe(self) -> str:
        """Return the possible values as text."""
        domain = self.domain
        if isinstance(domain, CategoricalDistribution):
            return " or ".join(str(value) for value in domain.choices)
        steps = f" in steps of {domain.step:g}" if domain.step else ""
        return f"{domain.low:g} to {domain.high:g}{steps}"


def parse_entries(setting: str, form: Any) -> list[Entry]:
    """Return the entries of a setting from their form in YAML.

    Args:
        form: a value, a list of values, a mapping with a range or with `values`, or a list of such mappings.

    Raises:
        UsageError: the form is something else, or the config does not allow a value.
    """
    if isinstance(form, list) and form and all(isinstance(item, dict) for item in form):
        return [_parse_mapping(setting, item) for item in form]
    if isinstance(form, dict):
        return [_parse_mapping(setting, form)]
    return [listed_entry(setting, form if isinstance(form, list) else [form])]


def listed_entry(setting: str, values: list[Any]) -> Entry:
    """Return an entry with these values, for all models that have the setting."""
    domain = CategoricalDistribution(_validate_list(setting, values))
    return Entry(setting, domain, _add_model_condition(setting, {}), setting)


def check_name(name: Any, also: Iterable[str] = ()) -> None:
    """Raise a UsageError unless `name` is a searchable setting or one of the names in `also`."""
    known = [*SEARCHABLE, *also]
    if name in known:
        return
    if name in TrainConfig.model_fields:
        raise UsageError(
            f"{name} cannot be searched; give it on the command line, for all trials. "
            f"Searchable settings: {', '.join(SEARCHABLE)}"
        )
    raise UsageError(f"unknown setting {name}: {_hint(name, known)}")


def _parse_mapping(setting: str, form: dict[Any, Any]) -> Entry:
    known = (*RANGE_KEYS, "values", "when")
    for key in form:
        if key not in known:
            raise UsageError(f"{setting}: unknown key {key}: {_hint(key, known)}")
        if key in RANGE_KEYS and "values" in form:
            raise UsageError(f"{setting}: give either values or a range (got {form!r})")
    when = _parse_when(setting, form["when"]) if "when" in form else {}
    if "values" in form:
        values = form["values"] if isinstance(form["values"], list) else [form["values"]]
        domain: Domain = CategoricalDistribution(_validate_list(setting, values))
    else:
        domain = _range(setting, form)
    return Entry(setting, domain, _add_model_condition(setting, when), setting)


def _range(setting: str, form: dict[str, Any]) -> Domain:
    kind = CONFIG_OF[setting].model_fields[setting].annotation
    if kind not in (int, float):
        raise UsageError(f"{setting}: it cannot have a range (got {form!r}); list values: {setting}: [...]")
    if missing := [key for key in ("low", "high") if key not in form]:
        raise UsageError(f"{setting}: {missing[0]} is missing (got {form!r}); a range has low and high")
    low, high = _validate_value(setting, form["low"]), _validate_value(setting, form["high"])
    if low >= high:
        raise UsageError(f"{setting}: low must be below high (got low {low}, high {high})")
    log, step = form.get("log", False), form.get("step")
    if not isinstance(log, bool):
        raise UsageError(f"{setting}: log must be true or false (got {log!r})")
    if log and step is not None:
        raise UsageError(f"{setting}: give either log or step (got {form!r})")
    if log and low <= 0:
        raise UsageError(f"{setting}: with log, low must be above 0 (got {low})")
    if step is not None:
        step = _step(setting, kind, step, low, high)
    if kind is int:
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _step(setting: str, kind: Any, given: Any, low: float, high: float) -> Any:
    try:
        step = TypeAdapter(kind).validate_python(given)
        divides = step > 0 and (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) == 0
    except (ValidationError, ArithmeticError):
        divides = False
    if not divides:
        raise UsageError(f"{setting}: step must divide the range from {low} to {high} (got {given!r})")
    return step


def _validate_list(setting: str, given: list[Any]) -> list[Any]:
    if not given:
        raise UsageError(f"{setting}: the list of values is empty")
    values = [_validate_value(setting, value) for value in given]
    for i, value in enumerate(values):
        if value in values[:i]:
            raise UsageError(f"{setting}: {value} is listed twice")
    return values


def _validate_value(setting: str, value: Any) -> Any:
    """Return the value in the type of the setting: YAML reads 1e-4 as text."""
    valid = getattr(validate(CONFIG_OF[setting], {setting: value}), setting)
    if isinstance(value, bool) or (isinstance(valid, float) and not math.isfinite(valid)):
        raise UsageError(f"{setting}: must be a finite number (got {value!r})")
    return valid


def _parse_when(setting: str, given: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(given, dict) or not given:
        raise UsageError(
            f"{setting}: when must map settings to values, such as {{optimizer: sgd}} (got {given!r})"
        )
    when = {}
    for other, values in given.items():
        try:
            check_name(other)
            when[other] = tuple(_validate_list(other, values if isinstance(values, list) else [values]))
        except UsageError as error:
            raise UsageError(f"{setting}: when: {error}") from None
    return when


def _add_model_condition(setting: str, when: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Return the condition, extended by the models that have the setting."""
    if setting not in MODELS_WITH:
        return when
    having = MODELS_WITH[setting]
    models = tuple(model for model in when.get("model", having) if model in having)
    if not models:
        raise UsageError(
            f"{setting}: only {', '.join(having)} have this setting (got when: model: {when['model'][0]})"
        )
    return {**when, "model": models}


def _hint(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _short(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)
