"""A process that works on a study: it takes trials as long as there are any. `python -m tuning.worker`

Its orders are a line of JSON on standard input, which then stays open: it ends with the process that gave
the orders, however that dies, and then the worker saves its trial and stops.
"""

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import mlflow
import optuna
from filelock import FileLock, Timeout
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow.config import TrainConfig, resolve_train_config, validate
from cifar_mlflow.errors import CifarError
from cifar_mlflow.interrupt import Interrupted, StopRequest
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.tracking.store import connect
from tuning.config import SearchConfig
from tuning.objective import TrainedTrial, TrialLostError, run_trial
from tuning.retrain import retrain
from tuning.samplers import build_pruner, build_sampler
from tuning.space import Space
from tuning.storage import Storage, quiet, retry_on_outage
from tuning.warm_start import EARLIER, PLACES

# Called by the name under which the package logs, so that its handler applies.
logger = logging.getLogger("cifar_mlflow.tuning")

ATTEMPTS = 3


@dataclass(frozen=True)
class Orders:
    """What a worker needs to know; all of it can be written as JSON.

    Attributes:
        search: the settings of the search.
        fixed: settings of the training that are the same in all trials.
        space: file with the search space.
        parent_run_id: the MLflow run of the study.
        index: of this worker on this machine, from 0.
        threads: CPU threads of this worker.
        deadline: Unix time after which no trial begins.
        retrain: settings of trainings to do instead of trials, each with the key that it is remembered by.
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


class Worker:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.search = validate(SearchConfig, orders.search)
        self.space = Space.read(Path(orders.space)).fixed(orders.fixed)
        self.storage = Storage(self.search.storage, orders.study, Path(orders.cache_dir))
        self.study = retry_on_outage(self._load_study)
        self.objectives: list[str] = self.study.user_attrs["objectives"]
        # What the runs of all trials have in common.
        self.tags = {
            MLFLOW_PARENT_RUN_ID: orders.parent_run_id,
            "optuna.study": orders.study,
            "optuna.sampler": self.search.sampler,
            "optuna.pruner": self.search.pruner,
        }

    def _load_study(self) -> optuna.Study:
        database = self.storage.open()
        study = optuna.load_study(study_name=self.orders.study, storage=database)
        # Each worker draws other numbers, and others again when the study goes on later.
        seed = self.orders.fixed.get("seed", 0) + 1_000 * len(study.trials) + self.orders.index
        study.sampler = build_sampler(self.search, self.space, int(seed))
        study.pruner = build_pruner(self.search)
        return study

    def work(self) -> None:
        """Take trials until there is none left to take."""
        with StopRequest() as stop:
            connect(self.orders.experiment)
            while True:
                stop.raise_if_asked()
                taken = retry_on_outage(self._take)
                if taken is None:
                    return
                trial, lock, begun = taken
                name_lines_after(f"trial {trial.trial.number}")
                try:
                    if begun and (reason := self._hopeless(trial.trial)):
                        trial.fail(reason, 0.0, Path(self.orders.cache_dir))
                    else:
                        run_trial(trial, self._config(trial.trial), begun)
                except TrialLostError as error:
                    logger.warning("%s", error)
                finally:
                    lock.release()

    def _take(self) -> tuple[TrainedTrial, FileLock, bool] | None:
        """The next trial to work on, its lock held, and whether it was begun before; None if all is done."""
        with self.storage.turn():
            trials = self.study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and (lock := self._orphaned(frozen)):
                    return self._adopt(frozen), lock, True
            optuna.storages.fail_stale_trials(self.study)
            trials = self.study.get_trials(deepcopy=False)
            if not any(trial.state == TrialState.WAITING for trial in trials):
                if not self._may_ask(trials):
                    return None
                self._enqueue_first_tries(trials)
            trial = self.study.ask()
            trial.set_user_attr("host", self.storage.host)
            lock = self.storage.trial_lock(trial.number)
            lock.acquire(blocking=False)
            self.storage.beat(self.study)
            self._forget_lost_machine(trial)
            self._choose(trial)
            return self._trained(trial), lock, False

    def _orphaned(self, frozen: FrozenTrial) -> FileLock | None:
        """The lock of a running trial on which no process works, and which can go on here."""
        # One without a host lost its process between being asked for and signed: nobody else is in here.
        if frozen.user_attrs.get("host", self.storage.host) != self.storage.host:
            return None
        lock = self.storage.trial_lock(frozen.number)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        # It may have ended since the list was read: a lock that is free says only that nobody is at work.
        if self.storage.database.get_trial(frozen._trial_id).state != TrialState.RUNNING:
            lock.release()
            return None
        return lock

    def _adopt(self, frozen: FrozenTrial) -> TrainedTrial:
        trial = optuna.Trial(self.study, frozen._trial_id)
        trial.set_user_attr("host", self.storage.host)
        attempts = [*frozen.user_attrs.get("attempts", []), len(frozen.intermediate_values)]
        trial.set_user_attr("attempts", attempts)
        self._choose(trial)
        return self._trained(trial)

    def _choose(self, trial: optuna.Trial) -> None:
        """Hyperparameters by the sampler; those of a trial that has them already stay."""
        suggested = self.space.suggest(trial)
        if "settings" not in trial.user_attrs:
            trial.set_user_attr("settings", {**self.orders.fixed, **suggested, "epochs": self.search.epochs})
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", "sampler")

    def _trained(self, trial: optuna.Trial) -> TrainedTrial:
        return TrainedTrial(trial, self.objectives, self.search.epochs, self.tags, self.storage)

    def _may_ask(self, trials: list[FrozenTrial]) -> bool:
        """Whether the budget has room for one more trial."""
        if self.orders.deadline and time.time() > self.orders.deadline:
            return False
        if isinstance(self.study.sampler, GridSampler) and self.study.sampler.is_exhausted(self.study):
            return False
        made = own_trials(trials)
        if self.search.trials and len(made) >= self.search.trials:
            return False
        # A trial that runs may use all of its epochs.
        used = sum(trial.user_attrs.get("epochs", self.search.epochs) for trial in made)
        return not (self.search.epochs_budget and used + self.search.epochs > self.search.epochs_budget)

    def _enqueue_first_tries(self, trials: list[FrozenTrial]) -> None:
        """Put the next of the settings that are to be tried first into the queue, if there is one."""
        tried = {trial.user_attrs.get("origin") for trial in trials}
        for first in self.study.user_attrs["first_tries"]:
            if first["origin"] not in tried:
                self.study.enqueue_trial(first["params"], user_attrs={"origin": first["origin"]})
                return

    def _forget_lost_machine(self, trial: optuna.Trial) -> None:
        """A trial that is begun anew for a machine that was lost brings along what that one had noted."""
        if run_id := trial.user_attrs.get("run_id"):
            reason = f"its machine was lost; begun anew as trial {trial.number}"
            client = mlflow.MlflowClient()
            call_mlflow(lambda: client.set_tag(run_id, "error", reason))
            call_mlflow(lambda: client.set_tag(run_id, "optuna.state", "FAIL"))
            call_mlflow(lambda: client.set_terminated(run_id, "KILLED"))
            trial.set_user_attr("run_id", None)
            trial.set_user_attr("attempts", [])

    def _hopeless(self, trial: optuna.Trial) -> str | None:
        """Why a trial is given up: its process died again and again at the same epoch."""
        attempts = trial.user_attrs.get("attempts", [])[-ATTEMPTS:]
        if len(attempts) == ATTEMPTS and len(set(attempts)) == 1:
            return f"its process was killed {ATTEMPTS} times in epoch {attempts[-1] + 1} (out of memory?)"
        return None

    def _config(self, trial: optuna.Trial) -> TrainConfig:
        settings: dict[str, Any] = trial.user_attrs["settings"]
        return resolve_train_config(
            {
                **settings,
                # Of this machine, also where another one chose the settings.
                **{name: value for name, value in self.orders.fixed.items() if name in PLACES},
                "test": False,  # a search must not even read it
                "threads": self.orders.threads,
                "cache_dir": self.orders.cache_dir,
                "experiment": self.orders.experiment,
                "run_name": f"trial-{trial.number:03}",
            }
        )


def own_trials(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that count against the budget: not the ones made before the study, nor lost and begun anew."""
    lost = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    return [
        trial for trial in trials if trial.number not in lost and trial.user_attrs.get("origin") != EARLIER
    ]


def main() -> int:
    orders = Orders.from_json(sys.stdin.readline())
    handler = logging.StreamHandler(sys.stdout)
    package = logging.getLogger("cifar_mlflow")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)
    quiet()
    gc.freeze()  # the libraries' million objects, which a full collection would look through in half a second
    threading.Thread(target=stop_with_parent, daemon=True).start()
    try:
        worker = Worker(orders)
        if orders.retrain is None:
            worker.work()
        else:
            connect(orders.experiment)
            retrain(worker.study, orders.retrain, worker.tags, worker.storage)
    except CifarError as error:
        print(f"Error: {error}", flush=True)
        return error.exit_code
    except Interrupted as interruption:
        return 128 + interruption.signum
    except KeyboardInterrupt:
        return 130
    return 0


def name_lines_after(what: str) -> None:
    for handler in logging.getLogger("cifar_mlflow").handlers:
        handler.setFormatter(logging.Formatter(f"{what}: %(message)s"))


def stop_with_parent() -> None:
    """Ask for a stop when standard input ends: whoever would read what we print is gone."""
    sys.stdin.read()
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
