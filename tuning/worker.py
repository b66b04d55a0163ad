"""The worker process, started by `tuning.workers`: it runs trials.

Its `WorkerSpec` is a line of JSON on standard input. That pipe stays open as long as the parent lives; when
it ends, the worker saves its trial and stops.
"""

import gc
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import optuna
from filelock import FileLock, Timeout
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState

from cifar_mlflow.config import TrainConfig, resolve_train_config
from cifar_mlflow.effective import NEUTRAL, changes_in_words
from cifar_mlflow.errors import CifarError
from cifar_mlflow.interrupt import Interrupted, StopRequest, stoppable
from cifar_mlflow.names import counted
from cifar_mlflow.settings import validate
from cifar_mlflow.tracking.retry import call_mlflow
from cifar_mlflow.tracking.store import connect
from tuning.command import without_passwords
from tuning.config import SearchConfig
from tuning.objective import TrialCallbacks, TrialLostError, may_be_pruned, run_trial
from tuning.optuna_output import ignore_optuna_warnings, silence_optuna
from tuning.results import best_metrics, headline, own_trials
from tuning.retrain import retrain
from tuning.samplers import build_pruner, build_sampler
from tuning.space import Space
from tuning.storage import Storage, heartbeat_seconds
from tuning.study_spec import WorkerSpec

logger = logging.getLogger("cifar_mlflow.tuning")

MAX_ATTEMPTS = 3


class Worker:
    """Runs trials of a study until the budget is used up."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.search = validate(SearchConfig, spec.search)
        self.space = Space.read(Path(spec.space)).fixed(spec.fixed)
        self.storage = Storage(self.search.storage, spec.study, Path(spec.cache_dir), spec.experiment)
        self.study = self.storage.retry_on_outage(self._load_study)
        self.objectives: list[str] = self.study.user_attrs["objectives"]
        # Tags of the runs of all trials.
        self.tags = {
            MLFLOW_PARENT_RUN_ID: spec.parent_run_id,
            "optuna.study": spec.study,
            "optuna.sampler": self.search.sampler,
            "optuna.pruner": self.search.pruner,
        }

    def _load_study(self) -> optuna.Study:
        study = optuna.load_study(study_name=self.spec.study, storage=self.storage.open())
        # Each worker draws different numbers, and different ones again when the study is continued.
        seed = self.spec.fixed.get("seed", 0) + 1_000 * len(study.trials) + self.spec.index
        study.sampler = build_sampler(self.search, self.space, int(seed))
        study.pruner = build_pruner(self.search)
        return study

    def run_trials(self) -> None:
        """Run trials until none is left.

        The first worker of a machine stays until the trials of other machines have ended, too: if one of
        these machines is lost, its trial is restarted here.
        """
        with StopRequest() as stop:
            connect(self.spec.experiment)
            while True:
                stop.raise_if_asked()
                claimed = self.storage.retry_on_outage(self.claim_trial)
                if claimed is None:
                    if not self.storage.retry_on_outage(self._waits_for_others):
                        return
                    with stop.at_once():
                        time.sleep(heartbeat_seconds())
                    continue
                callbacks, lock, is_restart = claimed
                prefix_log_lines(f"trial {callbacks.trial.number}")
                logger.info("%s", self._settings_in_words(callbacks.trial))
                try:
                    if is_restart and (reason := give_up_reason(callbacks.trial)):
                        callbacks.fail(reason, 0.0, Path(self.spec.cache_dir))
                    else:
                        run_trial(callbacks, self._train_config(callbacks.trial), is_restart)
                    self.storage.retry_on_outage(partial(self._report_progress, callbacks.trial.number))
                except TrialLostError as error:
                    logger.warning("%s", error)
                finally:
                    lock.release()

    def _report_progress(self, finished: int) -> None:
        """Print how far the search is, and log the best value so far to its run, at the step of the trial."""
        logger.info("%s", headline(self.study, self.search.trials, self.search.workers))
        client = mlflow.MlflowClient()
        for name, value in best_metrics(self.study).items():
            call_mlflow(partial(client.log_metric, self.spec.parent_run_id, name, value, step=finished))

    def _waits_for_others(self) -> bool:
        if self.spec.index or (self.spec.deadline and time.time() > self.spec.deadline):
            return False
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        here = self.storage.host
        others = sum(trial.user_attrs.get("host", here) != here for trial in running)
        if others:
            waiting = counted(others, "trial")
            logger.info("Waiting for %s of other machines, to restart those of a lost one", waiting)
        return others > 0

    @ignore_optuna_warnings()
    def claim_trial(self) -> tuple[TrialCallbacks, FileLock, bool] | None:
        """Return the next trial, its acquired lock and whether it is a restart; None if all is done."""
        with self.storage.exclusive():
            trials = self.study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and (lock := self._lock_orphan(frozen)):
                    return self._callbacks(self._adopt(frozen)), lock, True
            optuna.storages.fail_stale_trials(self.study)
            trials = self.study.get_trials(deepcopy=False)
            if not any(trial.state == TrialState.WAITING for trial in trials):
                if not self._has_budget(trials):
                    return None
                self._enqueue_next_first_trial(trials)
            trial = self.study.ask()
            trial.set_user_attr("host", self.storage.host)
            lock = self.storage.trial_lock(trial.number)
            lock.acquire(blocking=False)
            self.storage.record_heartbeats(self.study)
            self._close_run_of_lost_machine(trial)
            self._choose_settings(trial)
            return self._callbacks(trial), lock, False

    def _lock_orphan(self, frozen: FrozenTrial) -> FileLock | None:
        """Return the acquired lock of a running trial if its process, on this machine, has died."""
        # Without a host, its process died between `ask` and `set_user_attr`: this block is exclusive.
        if frozen.user_attrs.get("host", self.storage.host) != self.storage.host:
            return None
        lock = self.storage.trial_lock(frozen.number)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        # The trial may have finished after the list was read; its lock is free then, too.
        trial_id = self.storage.trial_id(frozen.number)
        if self.storage.database.get_trial(trial_id).state != TrialState.RUNNING:
            lock.release()
            return None
        return lock

    def _adopt(self, frozen: FrozenTrial) -> optuna.Trial:
        trial = optuna.Trial(self.study, self.storage.trial_id(frozen.number))
        trial.set_user_attr("host", self.storage.host)
        attempts = [*frozen.user_attrs.get("attempts", []), len(frozen.intermediate_values)]
        trial.set_user_attr("attempts", attempts)
        self._choose_settings(trial)
        return trial

    def _choose_settings(self, trial: optuna.Trial) -> None:
        """Let the sampler choose the hyperparameters; a trial that has them keeps them."""
        suggested = self.space.suggest(trial)
        if "settings" not in trial.user_attrs:
            settings = {**self.spec.fixed, **suggested, "epochs": self.search.epochs}
            trial.set_user_attr("settings", without_passwords(settings))
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", "sampler")

    def _callbacks(self, trial: optuna.Trial) -> TrialCallbacks:
        return TrialCallbacks(
            trial,
            self.objectives,
            self.search.epochs,
            self.tags,
            self.storage,
            may_be_pruned=may_be_pruned(trial.number, self.study.get_trials(deepcopy=False)),
        )

    def _has_budget(self, trials: list[FrozenTrial]) -> bool:
        """Return whether the budget allows one more trial."""
        if self.spec.deadline and time.time() > self.spec.deadline:
            return False
        if isinstance(self.study.sampler, GridSampler) and self.study.sampler.is_exhausted(self.study):
            return False
        own = own_trials(trials)
        if self.search.trials and len(own) >= self.search.trials:
            return False
        # A running trial may use all of its epochs.
        used = sum(trial.user_attrs.get("epochs", self.search.epochs) for trial in own)
        return not (self.search.epochs_budget and used + self.search.epochs > self.search.epochs_budget)

    def _enqueue_next_first_trial(self, trials: list[FrozenTrial]) -> None:
        """Enqueue the next trial that comes before the sampler's, if there is one."""
        done = {trial.user_attrs.get("origin") for trial in trials}
        for first in self.study.user_attrs["first_tries"]:
            if first["origin"] not in done:
                self.study.enqueue_trial(first["params"], user_attrs={"origin": first["origin"]})
                return

    def _close_run_of_lost_machine(self, trial: optuna.Trial) -> None:
        """End the run of a lost machine: its restarted trial has copies of the lost trial's attributes."""
        if run_id := trial.user_attrs.get("run_id"):
            reason = f"its machine was lost; restarted as trial {trial.number}"
            client = mlflow.MlflowClient()
            call_mlflow(lambda: client.set_tag(run_id, "error", reason))
            call_mlflow(lambda: client.set_tag(run_id, "optuna.state", "FAIL"))
            call_mlflow(lambda: client.set_terminated(run_id, "KILLED"))
            trial.set_user_attr("run_id", None)
            trial.set_user_attr("attempts", [])

    def _settings_in_words(self, trial: optuna.Trial) -> str:
        origin = trial.user_attrs["origin"]
        return changes_in_words(self._train_config(trial)) + ("" if origin == "sampler" else f" ({origin})")

    def _train_config(self, trial: optuna.Trial) -> TrainConfig:
        settings: dict[str, Any] = trial.user_attrs["settings"]
        return resolve_train_config(
            {
                **settings,
                # Another machine may have chosen the settings, with its own paths.
                **{name: value for name, value in self.spec.fixed.items() if name in NEUTRAL},
                "test": False,  # a search must not even read the test split
                "threads": self.spec.threads,
                "cache_dir": self.spec.cache_dir,
                "experiment": self.spec.experiment,
                "run_name": f"trial-{trial.number:03}",
            }
        )


def give_up_reason(trial: optuna.Trial) -> str | None:
    """Return why a trial is not restarted again: its process died repeatedly in the same epoch."""
    attempts = trial.user_attrs.get("attempts", [])[-MAX_ATTEMPTS:]
    if len(attempts) == MAX_ATTEMPTS and len(set(attempts)) == 1:
        return f"its process was killed {MAX_ATTEMPTS} times in epoch {attempts[-1] + 1} (out of memory?)"
    return None


def main() -> int:
    """Run the trials, or retrain the best one, of the spec on standard input; return the exit code."""
    spec = WorkerSpec.from_json(sys.stdin.readline())
    handler = logging.StreamHandler(sys.stdout)
    package = logging.getLogger("cifar_mlflow")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)
    silence_optuna()
    gc.freeze()  # exempt the libraries' million objects, or each full collection takes half a second
    threading.Thread(target=stop_with_parent, daemon=True).start()
    try:
        worker = Worker(spec)
        if spec.retrain is None:
            worker.run_trials()
        else:
            connect(spec.experiment)
            with stoppable():
                retrain(worker.study, spec.retrain, worker.tags, worker.storage)
    except CifarError as error:
        print(f"Error: {error}", flush=True)
        return error.exit_code
    except Interrupted as interruption:
        return 128 + interruption.signum
    except KeyboardInterrupt:
        return 130
    return 0


def prefix_log_lines(prefix: str) -> None:
    for handler in logging.getLogger("cifar_mlflow").handlers:
        handler.setFormatter(logging.Formatter(f"{prefix}: %(message)s"))


def stop_with_parent() -> None:
    """Request a stop when standard input ends: the parent, which reads the output, is gone."""
    sys.stdin.read()
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    os.kill(os.getpid(), signal.SIGTERM)
