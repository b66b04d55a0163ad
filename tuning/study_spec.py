"""The checked request for a search (`StudySpec`), and the part of it that a worker process gets."""

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
import yaml

from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.effective import NEUTRAL
from cifar_mlflow.errors import UsageError
from cifar_mlflow.names import counted, data_name
from cifar_mlflow.settings import validate
from tuning.command import command_line
from tuning.config import DEFAULT_TRIALS, SearchConfig, TuneConfig
from tuning.objective import SECOND_OBJECTIVES, VALUE
from tuning.samplers import build_sampler, resolve_auto
from tuning.space import Space
from tuning.storage import Storage, absolute_url


@dataclass(frozen=True)
class WorkerSpec:
    """The input of a worker process, in types that JSON has.

    Attributes:
        search: the settings of the search.
        fixed: training settings that are the same in all trials.
        space: path of the file with the search space.
        parent_run_id: MLflow run of the study.
        index: number of the worker on this machine, from 0.
        threads: CPU threads of the worker.
        deadline: Unix time after which no trial starts.
        retrain: settings of the retrainings to do instead of trials, by name.
    """

    study: str
    search: dict[str, Any]
    fixed: dict[str, Any]
    space: str
    parent_run_id: str
    cache_dir: str
    experiment: str
    index: int = 0
    threads: int = 0
    deadline: float | None = None
    retrain: dict[str, dict[str, Any]] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str) -> Self:
        return cls(**json.loads(line))


@dataclass(frozen=True)
class StudySpec:
    """The checked request for a search.

    Attributes:
        search: settings of the search.
        fixed: training settings that were given, as JSON values: they are the same in all trials.
        base: settings that all trainings share, such as data, split and device.
        models: architectures in the space.
        given: settings of the search that were given, as JSON values.
        promotion: options for the registration after the search, if it was asked for.
    """

    name: str
    search: SearchConfig
    fixed: dict[str, Any]
    base: TrainConfig
    space: Space
    models: list[str]
    given: dict[str, Any]
    promotion: dict[str, Any]

    @property
    def objectives(self) -> list[str]:
        second = self.search.second_objective
        return [VALUE] if second == "none" else [VALUE, SECOND_OBJECTIVES[second]]

    @property
    def space_yaml(self) -> str:
        """The content of a file for `--space`."""
        return yaml.safe_dump({**self.space.to_dict(), "replace": True}, sort_keys=False)

    @property
    def command(self) -> str:
        """The command that continues the search from any folder; without passwords.

        It has the settings that were given, and the storage, whose default depends on the folder. SQLite's
        path is absolute only if the file exists.
        """
        first = {"study": self.search.study, "storage": absolute_url(self.search.storage)}
        if self.search.space:
            first["space"] = str(self.search.space.absolute())
        # Named first so that they lead the command, and again so that their values win.
        return command_line("tune", first | self.given | first | self.promotion | self.fixed)

    def identity(self, digest: str) -> dict[str, Any]:
        """Return the settings that a study must keep, or its trials could not be compared.

        Args:
            digest: of the data set.
        """
        return {
            "data": digest,
            "epochs": self.search.epochs,
            "sampler": self.search.sampler,
            "pruner": self.search.pruner,
            "objectives": self.objectives,
            **{name: value for name, value in self.fixed.items() if name not in NEUTRAL},
            "space": self.space.to_dict(),
        }

    def worker_specs(self, storage: Storage, parent_run_id: str) -> list[WorkerSpec]:
        """Return one spec per worker; together they use the CPU threads of one training."""
        threads = self.base.threads or torch.get_num_threads()
        spec = WorkerSpec(
            study=self.name,
            search=self.search.model_dump(mode="json"),
            fixed={
                name: value
                for name, value in self.fixed.items()
                if name not in NEUTRAL or name in ("data_dir", "device", "mirrors", "system_metrics")
            },
            space=str(storage.folder / "space.yaml"),
            parent_run_id=parent_run_id,
            cache_dir=str(self.base.cache_dir),
            experiment=self.base.experiment,
            deadline=time.time() + self.search.timeout if self.search.timeout else None,
        )
        count = self.search.workers
        return [replace(spec, index=index, threads=max(1, threads // count)) for index in range(count)]


def read_study_spec(given: dict[str, Any], promotion: dict[str, Any] | None = None) -> StudySpec:
    """Check all settings of a search that can be checked without the data.

    Args:
        given: settings of `TuneConfig`.
        promotion: options for the registration after the search, if it was asked for.

    Raises:
        UsageError: one line for each problem.
    """
    if unknown := {name: value for name, value in given.items() if name not in TuneConfig.model_fields}:
        validate(TuneConfig, unknown)
    request = validate(SearchConfig, {k: v for k, v in given.items() if k in SearchConfig.model_fields})
    search = resolve_auto(request)
    if not (search.trials or search.timeout or search.epochs_budget):
        search = search.model_copy(update={"trials": DEFAULT_TRIALS})
    if search.epochs_budget and search.epochs_budget < search.epochs:
        raise UsageError(
            f"--epochs-budget: {search.epochs_budget} is too small for one trial of "
            f"{counted(search.epochs, 'epoch')}; raise --epochs-budget or lower --epochs"
        )
    texts = {name: value for name, value in given.items() if name not in SearchConfig.model_fields}
    space = Space.read(search.space) if search.space else Space.default()
    models = [texts["model"]] if "model" in texts else space.models
    # Each model must allow the given settings; this also converts the texts of the command line.
    configs = [resolve_train_config({**texts, "model": model}) for model in models]
    base = configs[0].model_copy(update={"epochs": search.epochs})
    if not base.val_size:
        raise UsageError("--val-size: a search compares validation accuracy; give a val_size above 0")
    values = base.model_dump(mode="json")
    fixed = {name: values[name] for name in texts}
    space = space.fixed(fixed)
    build_sampler(search, space, 0)  # refuses an impossible grid before the data are loaded
    return StudySpec(
        name=search.study or _default_name(base),
        search=search,
        fixed=fixed,
        base=base,
        space=space,
        models=models,
        given=request.model_dump(mode="json", exclude_unset=True),
        promotion=promotion or {},
    )


def _default_name(base: TrainConfig) -> str:
    return data_name("folder", base.data_dir) if base.dataset == "folder" else base.dataset
