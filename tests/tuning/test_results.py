"""The best trials, the reason of a failed search, and the trials that importances are estimated from."""

import optuna
import pytest
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from tests.tuning.studies import RUNNING, TWO, make_study, search, trial
from tuning.results import (
    IMPORTANCE_EVALUATOR,
    best_trials,
    failure_reason,
    headline,
    ranked_study,
    trial_name,
)


def importances(study: optuna.Study) -> dict[str, float]:
    ranked, names = ranked_study(study)
    return get_param_importances(ranked, evaluator=IMPORTANCE_EVALUATOR, params=names) if names else {}


def test_only_complete_trials_can_be_the_best() -> None:
    pruned = trial(TrialState.PRUNED, (0.99,), curve=(0.99,))
    study = make_study(
        [
            pruned,
            trial(values=(0.5,)),
            trial(TrialState.FAIL),
            trial(values=(0.7,)),
            trial(values=(0.7,)),
            RUNNING,
        ]
    )
    assert [t.number for t in best_trials(study, 10)] == [3, 4, 1]
    assert [t.number for t in best_trials(study, 1)] == [3]


def test_with_two_objectives_the_best_trials_are_the_pareto_front() -> None:
    study = make_study(
        [trial(values=values) for values in ((0.6, 1.0), (0.5, 2.0), (0.8, 3.5), (0.7, 2.0))], TWO
    )
    assert [t.number for t in best_trials(study, 10)] == [2, 3, 0]
    assert [t.number for t in best_trials(study, 2)] == [2, 3]


FAILED_A = trial(TrialState.FAIL, error="the loss became nan in epoch 3")
FAILED_B = trial(TrialState.FAIL, error="the loss became nan in epoch 12")
FAILED_C = trial(TrialState.FAIL, error="out of memory")
PRUNED = trial(TrialState.PRUNED, (0.1,), curve=(0.1,))
PRIOR = trial(values=(0.5,), origin="earlier run")


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        (
            [FAILED_C, FAILED_A, FAILED_B],
            "all 3 trials failed; most frequent reason (2 of 3): the loss became nan in epoch 3",
        ),
        ([FAILED_C], "the only trial failed; most frequent reason (1 of 1): out of memory"),
        ([PRIOR, FAILED_C], "the only trial failed; most frequent reason (1 of 1): out of memory"),
        (
            [PRUNED, FAILED_C],
            "no trial was completed: 1 failed, 1 pruned; most frequent reason (1 of 1): out of memory",
        ),
        ([PRUNED], "no trial was completed: 0 failed, 1 pruned"),
        ([], "no trial was run: the budget was used up before the first one could start"),
        ([PRIOR], "no trial was run: the budget was used up before the first one could start"),
    ],
)
def test_a_search_without_a_result_has_a_reason(trials: list[FrozenTrial], reason: str) -> None:
    assert failure_reason(make_study(trials)) == reason


@pytest.mark.parametrize("success", [[trial(values=(0.5,))], [RUNNING], [PRIOR, PRUNED]])
def test_a_search_with_a_result_has_no_reason_to_fail(success: list[FrozenTrial]) -> None:
    assert failure_reason(make_study([FAILED_A, *success])) is None


def test_importance_finds_what_matters_although_most_bad_trials_were_pruned() -> None:
    study = make_study(search(60))
    shares = importances(study)
    assert next(iter(shares)) == "lr.sgd"
    assert shares["lr.sgd"] > 0.5
    assert sum(shares.values()) == pytest.approx(1)
    assert "width" in shares
    complete = [t for t in study.get_trials() if t.state == TrialState.COMPLETE]
    assert importances(make_study(complete)).get("lr.sgd", 0) < shares["lr.sgd"]


def test_a_parameter_that_few_trials_have_is_not_assessed() -> None:
    with_mixup = [trial(values=(0.9 + i / 100,), params={"cutout": 4, "mixup": 0.5}) for i in range(4)]
    others = [trial(values=(i / 100,), params={"cutout": 8}) for i in range(20)]
    assert [*importances(make_study(with_mixup + others))] == ["cutout"]


def test_the_headline_tells_how_far_the_search_is() -> None:
    trials = [
        trial(values=(0.5,), seconds=30.0),
        trial(values=(0.8076,), seconds=90.0),
        trial(TrialState.PRUNED, curve=(0.1,), seconds=60.0),
        trial(TrialState.RUNNING),
        trial(values=(0.7,), origin="earlier run", seconds=1000.0),
    ]
    study = make_study(trials)
    assert headline(study, 20, 1) == "3 of 20 trials done, best 80.8 % by trial 1, about 17 min left"
    assert headline(study, 20, 17) == "3 of 20 trials done, best 80.8 % by trial 1, about 60 s left"
    assert headline(study, 3, 1) == "3 of 3 trials done, best 80.8 % by trial 1"
    assert headline(study, None, 1) == "3 trials done, best 80.8 % by trial 1"
    assert headline(make_study([]), 20, 1) == "0 of 20 trials done"
    assert headline(make_study([]), 1, 1) == "0 of 1 trial done"


def test_a_trial_says_where_its_settings_are_from_unless_the_sampler_chose_them() -> None:
    study = make_study([trial(values=(0.6,), origin="recipe of cnn"), trial(values=(0.5,))])
    assert [trial_name(t) for t in study.get_trials()] == ["0 (recipe of cnn)", "1"]
    assert headline(study, 2, 1) == "2 of 2 trials done, best 60.0 % by trial 0 (recipe of cnn)"
