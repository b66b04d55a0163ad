"""What a study has found: its best trials, and which parameters they owe their results to."""

import math
import warnings
from collections import Counter
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

# With fewer trials the order of the parameters is hardly better than chance.
FEWEST_TRIALS = 15
FEWEST_TRIALS_OF_A_PARAMETER = 5


def in_state(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Complete trials, the highest first objective first; with two objectives the Pareto front of them."""
    trials = in_state(study, TrialState.COMPLETE)
    if len(study.directions) > 1:
        front = {trial.number for trial in study.best_trials}
        trials = [trial for trial in trials if trial.number in front]
    return sorted(trials, key=lambda trial: (-trial.values[0], trial.number))[:count]


def parameters(study: optuna.Study) -> list[str]:
    """All that any trial has, the most important first."""
    judged = list(importances(study))
    names = {name for trial in study.get_trials(deepcopy=False) for name in trial.params}
    return judged + sorted(names - {*judged})


def compact(params: dict[str, Any]) -> dict[str, str]:
    """Values with the digits that a person compares."""
    return {
        name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in params.items()
    }


def importances(study: optuna.Study) -> dict[str, float]:
    """How far the best third of the trials differs from all in the distribution of each parameter, as shares
    that add up to 1, the largest first (PED-ANOVA in its conditional form, arXiv 2601.20800).

    Pruned trials count as worse than complete ones, by how far they came. Optuna leaves them out, and then
    compares good trials with good ones: in made-up searches with ASHA that put parameters without any effect
    first.

    A parameter is judged by the trials that have it, and is left out where these are fewer than five. The
    result is empty with fewer than 15 trials, or where all are equally good. It is of the first objective.
    """
    trials = in_state(study, TrialState.COMPLETE, TrialState.PRUNED)
    ranks = {goodness: float(rank) for rank, goodness in enumerate(sorted({*map(_goodness, trials)}))}
    owners = Counter(name for trial in trials for name in trial.params)
    judged = sorted(name for name, count in owners.items() if count >= FEWEST_TRIALS_OF_A_PARAMETER)
    if len(trials) < FEWEST_TRIALS or len(ranks) == 1 or not judged:
        return {}
    ranked = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize")
    ranked.add_trials(
        create_trial(params=trial.params, distributions=trial.distributions, value=ranks[_goodness(trial)])
        for trial in trials
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=1 / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters whose bounds were others in some trials
        shares = get_param_importances(ranked, evaluator=evaluator, params=judged)
    return dict(sorted(shares.items(), key=lambda share: (-share[1], share[0])))


def _goodness(trial: FrozenTrial) -> tuple[float, float]:
    if trial.state == TrialState.COMPLETE:
        return (math.inf, trial.values[0])
    step = trial.last_step
    return (-1.0, 0.0) if step is None else (float(step), trial.intermediate_values[step])
