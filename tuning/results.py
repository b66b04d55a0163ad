"""The results of a study: its best trials, why it has none, and how important its parameters are."""

import math
import re
from collections import Counter
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from cifar_mlflow.console import duration, percent
from cifar_mlflow.names import counted
from tuning.warm_start import PRIOR_RUN

# With fewer trials, the order of the parameters is hardly better than chance.
MIN_TRIALS_FOR_IMPORTANCE = 15
MIN_TRIALS_PER_PARAMETER = 5
# PED-ANOVA compares the best third of the trials with all of them.
IMPORTANCE_EVALUATOR = PedAnovaImportanceEvaluator(target_quantile=1 / 3)


def in_state(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def own_trials(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count against the budget: without prior runs and lost trials."""
    lost = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    return [
        trial for trial in trials if trial.number not in lost and trial.user_attrs.get("origin") != PRIOR_RUN
    ]


def best_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    """Return complete trials by descending first objective; with two objectives, only the Pareto front."""
    trials = in_state(study, TrialState.COMPLETE)
    if len(study.directions) > 1:
        front = {trial.number for trial in study.best_trials}
        trials = [trial for trial in trials if trial.number in front]
    return sorted(trials, key=lambda trial: (-trial.values[0], trial.number))[:count]


def values(study: optuna.Study, trial: FrozenTrial) -> dict[str, float]:
    """Return the values by objective; for a pruned trial none, although Optuna has its last report."""
    if trial.state != TrialState.COMPLETE:
        return {}
    return dict(zip(study.user_attrs["objectives"], trial.values, strict=True))


def best_metrics(study: optuna.Study) -> dict[str, float]:
    """Return the values of the best trial by the names of metrics; empty if no trial is complete."""
    return {
        f"best/{name}": value
        for trial in best_trials(study, 1)
        for name, value in values(study, trial).items()
    }


def trial_name(trial: FrozenTrial) -> str:
    """Return the number of a trial and, unless the sampler chose its settings, where they are from."""
    origin = trial.user_attrs.get("origin", "sampler")
    return f"{trial.number}" if origin == "sampler" else f"{trial.number} ({origin})"


def headline(study: optuna.Study, trials: int | None, workers: int) -> str:
    """Return the progress of a search: `7 of 20 trials done, best 80.8 % by trial 3, about 12 min left`.

    Args:
        trials: planned number of trials; None if another budget ends the search.
        workers: number of processes that share them.
    """
    own = own_trials(study.get_trials(deepcopy=False))
    finished = [trial for trial in own if trial.state.is_finished()]
    of_all = f"{len(finished)} of " if trials else ""
    parts = [f"{of_all}{counted(trials or len(finished), 'trial')} done"]
    if best := best_trials(study, 1):
        parts.append(f"best {percent(best[0].values[0]).strip()} by trial {trial_name(best[0])}")
    seconds = [trial.user_attrs["seconds"] for trial in finished if "seconds" in trial.user_attrs]
    if trials and seconds and (left := trials - len(finished)) > 0:
        parts.append(f"about {duration(left * sum(seconds) / len(seconds) / workers)} left")
    return ", ".join(parts)


def failure_reason(study: optuna.Study) -> str | None:
    """Return in one line why no trial succeeded; None if one did or still may."""
    own = own_trials(study.get_trials(deepcopy=False))
    counts = Counter(trial.state for trial in own)
    if counts[TrialState.COMPLETE] or counts[TrialState.RUNNING] or counts[TrialState.WAITING]:
        return None
    if counts[TrialState.PRUNED] and best_trials(study, 1):  # of a prior run, which no trial surpassed
        return None
    if not own:
        return "no trial was run: the budget was used up before the first one could start"
    # Errors that differ in numbers only, such as the epoch, have the same reason.
    errors = [trial.user_attrs.get("error", "unknown") for trial in own if trial.state == TrialState.FAIL]
    kinds = Counter(re.sub(r"\d+", "0", error) for error in errors)
    reason = ""
    if errors:
        kind, count = kinds.most_common(1)[0]
        example = next(error for error in errors if re.sub(r"\d+", "0", error) == kind)
        reason = f"; most frequent reason ({count} of {len(errors)}): {example}"
    if not counts[TrialState.PRUNED]:
        failed = "the only trial" if len(own) == 1 else f"all {len(own)} trials"
        return f"{failed} failed{reason}"
    return f"no trial was completed: {len(errors)} failed, {counts[TrialState.PRUNED]} pruned{reason}"


def varying_parameters(trials: list[FrozenTrial]) -> list[str]:
    """Return the names of the parameters that differ between trials, or that only some of them have."""
    names = sorted({name for trial in trials for name in trial.params})
    return [name for name in names if len({trial.params.get(name) for trial in trials}) > 1]


def compact(params: dict[str, Any]) -> dict[str, str]:
    """Return parameter values as texts of three significant digits."""
    return {
        name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in params.items()
    }


def ranked_study(study: optuna.Study) -> tuple[optuna.Study, list[str]]:
    """Return what Optuna needs to estimate importances: a study of ranks, and the parameters to assess.

    Pruned trials count as worse than complete ones, and the earlier they were pruned, the worse. Optuna
    leaves them out and so compares good trials with good ones: in synthetic searches with ASHA, that put
    parameters without any effect first.

    A parameter is assessed by the trials that have it, if there are at least five (PED-ANOVA in its
    conditional form, arXiv 2601.20800). With two objectives, ranks are those of the first one.

    Returns:
        The study and the names; no names if there are fewer than 15 trials or all are equally good.
    """
    trials = in_state(study, TrialState.COMPLETE, TrialState.PRUNED)
    ranks = {score: float(rank) for rank, score in enumerate(sorted({*map(_score, trials)}))}
    ranked = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize")
    ranked.add_trials(
        create_trial(params=trial.params, distributions=trial.distributions, value=ranks[_score(trial)])
        for trial in trials
    )
    if len(trials) < MIN_TRIALS_FOR_IMPORTANCE or len(ranks) == 1:
        return ranked, []
    counts = Counter(name for trial in trials for name in trial.params)
    return ranked, sorted(name for name, count in counts.items() if count >= MIN_TRIALS_PER_PARAMETER)


def _score(trial: FrozenTrial) -> tuple[float, float]:
    if trial.state == TrialState.COMPLETE:
        return (math.inf, trial.values[0])
    step = trial.last_step
    return (-1.0, 0.0) if step is None else (float(step), trial.intermediate_values[step])
