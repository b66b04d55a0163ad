"""Optuna's samplers and pruners by their names on the command line."""

from typing import Any

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from cifar_mlflow.errors import UsageError
from tuning.config import SearchConfig
from tuning.optuna_output import ignore_optuna_warnings
from tuning.space import Space

# One of three trials continues after epoch 1, and one of three of those after epoch 3 (Li et al. 2018, "A
# System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934).
REDUCTION = 3


class Grid(GridSampler):
    """GridSampler without its call of `study.stop`, which works only within `study.optimize`.

    Workers call `is_exhausted` instead.
    """

    def after_trial(self, *arguments: Any) -> None:
        pass


@ignore_optuna_warnings()
def build_sampler(search: SearchConfig, space: Space, seed: int) -> BaseSampler:
    """Return the sampler of a study.

    Raises:
        UsageError: the sampler is a grid and the space does not consist of listed values.
    """
    seed %= 2**32
    match search.sampler:
        case "tpe":
            return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
        case "cmaes":  # most trials are pruned, so CMA-ES must learn from them too
            return CmaEsSampler(seed=seed, warn_independent_sampling=False, consider_pruned_trials=True)
        case "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "grid":
            return Grid(space.grid())
        case "qmc":
            return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


def build_pruner(search: SearchConfig) -> BasePruner:
    """Return the pruner of a study; its steps are epochs."""
    match search.pruner:
        case "asha" | "auto":
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
        case "hyperband":
            return HyperbandPruner(min_resource=1, max_resource=search.epochs, reduction_factor=REDUCTION)
        case "median":
            return MedianPruner()
        case "none":
            return NopPruner()


def resolve_auto(search: SearchConfig) -> SearchConfig:
    """Resolve `pruner: auto`.

    Raises:
        UsageError: Optuna does not support the combination of sampler, pruner and objectives.
    """
    two = search.second_objective != "none"
    if search.pruner == "auto":
        search = search.model_copy(update={"pruner": "none" if two else "asha"})
    if two and search.pruner != "none":
        raise UsageError(
            f"--pruner: {search.pruner} supports one objective only; with two, use --pruner none"
        )
    if two and search.sampler == "cmaes":
        raise UsageError("--sampler: cmaes supports one objective only; with two, use tpe, gp, random or qmc")
    if search.sampler == "cmaes" and search.pruner == "hyperband":
        raise UsageError("--sampler: cmaes does not support the pruner hyperband; use asha, median or none")
    return search
