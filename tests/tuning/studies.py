"""Made-up studies."""

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

EPOCHS = 9
SPACE: dict[str, BaseDistribution] = {
    "model": CategoricalDistribution(["cnn", "resnet18"]),
    "width": FloatDistribution(0.5, 1.5, log=True),  # of cnn only
    "lr.sgd": FloatDistribution(0.005, 0.5, log=True),
    "cutout": IntDistribution(0, 16, step=4),
    "mixup": FloatDistribution(0, 1),
    "weight_decay.model=cnn+fast,optimizer=sgd": FloatDistribution(0.5, 1.5),
}
ONE = ("val/accuracy",)
TWO = ("val/accuracy", "latency_ms")


def make_study(trials: list[FrozenTrial], objectives: tuple[str, ...] = ONE) -> optuna.Study:
    """Return a study in memory."""
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(objectives)]
    study = optuna.create_study(study_name="made up", directions=directions)
    study.set_user_attr("objectives", list(objectives))
    study.add_trials(trials)
    return study


def trial(
    state: TrialState = TrialState.COMPLETE,
    values: tuple[float, ...] | None = None,
    params: dict[str, Any] | None = None,
    curve: tuple[float, ...] = (),
    **attrs: Any,
) -> FrozenTrial:
    """Return a trial with the attributes that a worker stores."""
    params = {"model": "resnet18", "lr.sgd": 0.05} if params is None else params
    settings = {"dataset": "sample", "epochs": EPOCHS} | {
        name.split(".")[0]: value for name, value in params.items()
    }
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: SPACE[name] for name in params},
        intermediate_values=dict(enumerate(curve, 1)),
        user_attrs={"settings": settings, "origin": "sampler", **attrs},
    )


def search(count: int) -> list[FrozenTrial]:
    """Return trials of a search in which accuracy depends on the learning rate alone.

    Bad trials are pruned, and those with a high learning rate fail.
    """
    rng = np.random.default_rng(0)
    trials = []
    for number in range(count):
        params: dict[str, Any] = {
            "model": ["cnn", "resnet18"][rng.integers(2)],
            "lr.sgd": float(10 ** rng.uniform(-2.3, -0.31)),
            "cutout": int(4 * rng.integers(5)),
            "mixup": float(rng.uniform()),
        }
        if params["model"] == "cnn":
            params["width"] = float(rng.uniform(0.5, 1.5))
        attrs: dict[str, Any] = {"run_id": f"{number:032x}", "seconds": 12.5}
        accuracy = 0.9 - 0.3 * abs(math.log10(params["lr.sgd"] / 0.05))
        curve = tuple(accuracy * (1 - 0.7**epoch) for epoch in range(1, EPOCHS + 1))
        if params["lr.sgd"] > 0.4:
            attrs["error"] = "the loss became <b>NaN</b>"
            trials.append(trial(TrialState.FAIL, None, params, (0.1,), epochs=1, **attrs))
        elif accuracy < 0.8:
            trials.append(trial(TrialState.PRUNED, (curve[2],), params, curve[:3], epochs=3, **attrs))
        else:
            trials.append(trial(TrialState.COMPLETE, (accuracy,), params, curve, epochs=EPOCHS, **attrs))
    return trials


RUNNING = trial(TrialState.RUNNING, None, {"model": "cnn"}, run_id="f" * 32)
WAITING = create_trial(state=TrialState.WAITING, user_attrs={"origin": "recipe cnn"})
