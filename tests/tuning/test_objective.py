"""The values that the pruner receives from a trial, and the trials that it may stop."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tuning.config import SearchConfig
from tuning.objective import TrialCallbacks, may_be_pruned
from tuning.samplers import build_pruner
from tuning.storage import Storage

EPOCHS = 9


class Study:
    """A study in a database, whose trials report made-up accuracies."""

    def __init__(self, folder: Path, pruner: str = "asha") -> None:
        self.storage = Storage(f"sqlite:///{folder}/optuna.db", "mine", folder, "cifar10")
        self.study = optuna.create_study(
            study_name="mine",
            direction="maximize",
            storage=self.storage.open(),
            pruner=build_pruner(SearchConfig(pruner=pruner)),  # type: ignore[arg-type]
        )

    def trained_epochs(self, accuracy: float) -> int:
        """Run the next trial, with the same accuracy in each epoch, and return when it stops."""
        trial = self.study.ask()
        callbacks = TrialCallbacks(
            trial,
            ["val/accuracy"],
            EPOCHS,
            {"optuna.study": "mine"},
            self.storage,
            may_be_pruned=may_be_pruned(trial.number, self.study.get_trials(deepcopy=False)),
        )
        history: list[dict[str, float]] = []
        while not (callbacks.prune(history) or len(history) == EPOCHS):
            history.append({"epoch": len(history) + 1, "val/accuracy": accuracy})
        state = TrialState.COMPLETE if len(history) == EPOCHS else TrialState.PRUNED
        self.study.tell(trial, accuracy if state == TrialState.COMPLETE else None, state=state)
        return len(history)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
class TestPruning:
    def test_the_first_trials_set_the_values_that_later_ones_must_reach(self, tmp_path: Path) -> None:
        study = Study(tmp_path)
        assert [study.trained_epochs(accuracy) for accuracy in (0.6, 0.7, 0.5)] == [EPOCHS] * 3
        assert study.trained_epochs(0.4) == 1  # worse than all of them
        assert study.trained_epochs(0.8) == EPOCHS

    def test_the_first_trials_are_compared_in_later_rungs_too(self, tmp_path: Path) -> None:
        study = Study(tmp_path)
        for accuracy in (0.2, 0.1, 0.3):
            study.trained_epochs(accuracy)
        rungs = [
            {name: value for name, value in trial.system_attrs.items() if name.startswith("completed_rung")}
            for trial in study.study.get_trials()
        ]
        assert [list(rung.values()) for rung in rungs] == [[0.2] * 3, [0.1] * 3, [0.3] * 3]

    def test_without_a_pruner_every_trial_trains_to_its_end(self, tmp_path: Path) -> None:
        study = Study(tmp_path, "none")
        assert {study.trained_epochs(accuracy) for accuracy in (0.6, 0.7, 0.5, 0.1, 0.0)} == {EPOCHS}


def test_prior_runs_do_not_count_as_the_first_trials() -> None:
    """They have no accuracies by epoch, so that the pruner learns nothing from them."""
    study = optuna.create_study()
    study.add_trials([create_trial(value=0.5, user_attrs={"origin": "earlier run"})] * 5)
    study.add_trials([create_trial(value=0.5)] * 4)
    trials = study.get_trials()
    assert [may_be_pruned(number, trials) for number in range(5, 9)] == [False, False, False, True]
