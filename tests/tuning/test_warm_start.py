"""The first trials of a study, before those that the sampler draws."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_mlflow.errors import CifarError, UsageError
from tests.tuning.studies import make_study
from tuning.space import Space
from tuning.warm_start import experiment_id, first_trials, prior_trials


def test_models_that_share_a_recipe_have_a_trial_each(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("model: [resnet18, resnet34]\nlr: {low: 0.01, high: 0.5, log: true}\nreplace: true\n")
    space = Space.read(file)
    trials = first_trials(space, space.models, {}, (), None)
    assert [first["params"] for first in trials] == [
        {"model": "resnet18", "lr": 0.14},
        {"model": "resnet34", "lr": 0.14},
    ]
    assert len({first["origin"] for first in trials}) == 2  # a study recognizes by it which of them were run


def test_other_optimizers_follow_with_the_middle_of_their_ranges() -> None:
    space = Space.default().fixed({"model": "cnn"})
    recipe, *others = first_trials(space, ["cnn"], {"model": "cnn"}, (), 20)
    assert recipe["params"]["optimizer"] == "muon"
    assert [other["origin"] for other in others] == ["recipe of cnn with sgd", "recipe of cnn with adamw"]
    sgd = others[0]["params"]
    assert sgd["lr.sgd"] == pytest.approx((5e-3 * 0.5) ** 0.5, rel=0.01)
    assert "aux_lr" in " ".join(recipe["params"])
    assert "aux_lr" not in " ".join(sgd)
    shared = recipe["params"].keys() & sgd.keys() - {"optimizer"}
    assert {"batch_size", "label_smoothing", "momentum"} <= shared
    assert {name: sgd[name] for name in shared} == {name: recipe["params"][name] for name in shared}


@pytest.mark.parametrize(("trials", "first"), [(20, 10), (8, 4), (2, 4), (None, 12)])
def test_half_of_the_trials_are_left_to_the_sampler(trials: int | None, first: int) -> None:
    """Each recipe has a trial in any case, however few trials there are."""
    space = Space.default()
    assert len(first_trials(space, space.models, {}, (), trials)) == first


def test_a_given_optimizer_is_the_only_one() -> None:
    space = Space.default().fixed({"model": "cnn", "optimizer": "sgd"})
    assert len(first_trials(space, ["cnn"], {"model": "cnn", "optimizer": "sgd"}, (), None)) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: experiment_id("photos"),
        lambda: first_trials(Space.default(), ["cnn"], {}, ("a" * 32,), None),
        lambda: prior_trials("1", Space.default(), {}, "digest", make_study([])),
    ],
    ids=["experiment", "enqueued run", "prior runs"],
)
def test_an_outage_is_not_mistaken_for_a_run_that_does_not_exist(
    call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0")
    with pytest.raises(CifarError, match="does not answer: Connection refused") as caught:
        call()
    assert not isinstance(caught.value, UsageError)


@pytest.mark.usefixtures("folder")
def test_an_enqueued_run_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match=f"--enqueue: there is no run {'a' * 32} in sqlite:"):
        first_trials(Space.default(), ["cnn"], {}, ("a" * 32,), None)
