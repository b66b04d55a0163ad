"""Samplers and pruners by the names that the command line has for them."""

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
from tuning.space import Space

# Of three trials that have trained for 1 epoch, one goes on to 3, and of three of those one to 9 (Li et al.
# 2018, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934).
REDUCTION = 3


class Grid(GridSampler):
    """Optuna's grid, which is asked whether it is exhausted; its own way to say so needs `study.optimize`."""

    def after_trial(self, *arguments: Any) -> None:
        pass


def build_sampler(search: SearchConfig, space: Space, seed: int) -> BaseSampler:
    """The sampler of a study.

    Raises:
        UsageError: the grid is asked for and the space is not made of listed values.
    """
    seed %= 2**32
    match search.sampler:
        case "tpe":
            return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
        case "cmaes":  # pruned trials are most of them
            return CmaEsSampler(seed=seed, warn_independent_sampling=False, consider_pruned_trials=True)
        case "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "grid":
            return Grid(space.grid())
        case "qmc":
            return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


def build_pruner(search: SearchConfig) -> BasePruner:
    """The pruner of a study, whose steps are epochs."""
    match search.pruner:
        case "asha" | "auto":
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
        case "hyperband":
            return HyperbandPruner(min_resource=1, max_resource=search.epochs, reduction_factor=REDUCTION)
        case "median":
            return MedianPruner()
        case "none":
            return NopPruner()


def settle(search: SearchConfig) -> SearchConfig:
    """`pruner: auto` replaced by what it stands for.

    Raises:
        UsageError: a combination that Optuna has no answer for.
    """
    two = search.second_objective != "none"
    if search.pruner == "auto":
        search = search.model_copy(update={"pruner": "none" if two else "asha"})
    if two and search.pruner != "none":
        raise UsageError(
            f"pruner: {search.pruner} judges by one value; with two objectives use --pruner none"
        )
    if two and search.sampler == "cmaes":
        raise UsageError("sampler: cmaes has one objective; with two use tpe, gp, random or qmc")
    if search.sampler == "cmaes" and search.pruner == "hyperband":
        raise UsageError("sampler: cmaes does not go with the pruner hyperband; use asha, median or none")
    return search
