"""What a search was asked for: its own settings, those that its trainings share, and what is searched."""

from dataclasses import dataclass
from typing import Any

import yaml

from cifar_mlflow.config import TrainConfig, resolve_train_config, validate
from cifar_mlflow.errors import UsageError
from tuning.command import command_line
from tuning.config import DEFAULT_TRIALS, SearchConfig, TuneConfig
from tuning.objective import SECOND_OBJECTIVES, VALUE
from tuning.samplers import build_sampler, settle
from tuning.space import Space
from tuning.storage import anywhere
from tuning.warm_start import PLACES


@dataclass(frozen=True)
class Plan:
    """A search as it was asked for, checked.

    Attributes:
        search: its own settings.
        fixed: settings of the training that were given: they are the same in all trials.
        base: a training of it, for whatever all of them have in common: data, split, device.
        models: the architectures in the space.
    """

    name: str
    search: SearchConfig
    fixed: dict[str, Any]
    base: TrainConfig
    space: Space
    models: list[str]

    @property
    def objectives(self) -> list[str]:
        second = self.search.second_objective
        return [VALUE] if second == "none" else [VALUE, SECOND_OBJECTIVES[second]]

    @property
    def space_yaml(self) -> str:
        """A file that `--space` reads back."""
        return yaml.safe_dump({**self.space.to_dict(), "replace": True}, sort_keys=False)

    @property
    def command(self) -> str:
        """What goes on with it, without a password; from every folder, once the storage is open."""
        search = self.search.model_dump(mode="json", exclude_unset=True)
        places = {"study": self.name, "storage": anywhere(self.search.storage)}
        if self.search.space:
            places["space"] = str(self.search.space.absolute())
        # In the order of the first, with the values of the last.
        return command_line("tune", places | search | places | self.fixed)

    def identity(self, digest: str) -> dict[str, Any]:
        """What must be the same for a study to go on: else its trials could not be compared."""
        return {
            "data": digest,
            "epochs": self.search.epochs,
            "sampler": self.search.sampler,
            "pruner": self.search.pruner,
            "objectives": self.objectives,
            **{name: value for name, value in self.fixed.items() if name not in PLACES},
            "space": self.space.to_dict(),
        }


def read_plan(given: dict[str, Any]) -> Plan:
    """Check everything that can be checked before there is any data.

    Raises:
        UsageError: one line for each thing that is wrong.
    """
    if unknown := {name: value for name, value in given.items() if name not in TuneConfig.model_fields}:
        validate(TuneConfig, unknown)
    search = settle(
        validate(SearchConfig, {k: v for k, v in given.items() if k in SearchConfig.model_fields})
    )
    if not (search.trials or search.timeout or search.epochs_budget):
        search = search.model_copy(update={"trials": DEFAULT_TRIALS})
    texts = {name: value for name, value in given.items() if name not in SearchConfig.model_fields}
    space = Space.read(search.space) if search.space else Space.default()
    models = [texts["model"]] if "model" in texts else space.models
    # Each model must go with what was given; the texts of the command line become typed values on the way.
    configs = [resolve_train_config({**texts, "model": model}) for model in models]
    base = configs[0].model_copy(update={"epochs": search.epochs})
    if not base.val_size:
        raise UsageError("val_size: a search chooses by validation accuracy; it needs a val_size above 0")
    values = base.model_dump(mode="json")
    fixed = {name: values[name] for name in texts}
    name = search.study or base.dataset
    space = space.fixed(fixed)
    build_sampler(search, space, 0)  # a grid that cannot be made should not wait for the data
    return Plan(name, search, fixed, base, space, models)
