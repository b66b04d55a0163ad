"""What is tried before the sampler is asked."""

from pathlib import Path

import pytest

from tuning.space import Space
from tuning.warm_start import first_tries


def test_models_that_share_a_recipe_are_each_tried_first(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("model: [resnet18, resnet34]\nlr: {low: 0.01, high: 0.5, log: true}\nreplace: true\n")
    space = Space.read(file)
    tries = first_tries(space, space.models, {}, (), None)
    assert [first["params"] for first in tries] == [
        {"model": "resnet18", "lr": 0.1},
        {"model": "resnet34", "lr": 0.1},
    ]
    assert len({first["origin"] for first in tries}) == 2  # by which those that were tried are known


def test_other_optimizers_follow_with_their_own_settings_in_the_middle() -> None:
    space = Space.default().fixed({"model": "cnn"})
    recipe, *others = first_tries(space, ["cnn"], {"model": "cnn"}, (), 20)
    assert recipe["params"]["optimizer"] == "sgd"
    assert [other["origin"] for other in others] == ["recipe of cnn with adamw", "recipe of cnn with muon"]
    muon = others[1]["params"]
    assert muon["lr.muon"] == pytest.approx((0.02 * 0.6) ** 0.5, rel=0.01)
    assert "aux_lr" in " ".join(muon)
    shared = recipe["params"].keys() & muon.keys() - {"optimizer"}
    assert {"batch_size", "label_smoothing", "momentum"} <= shared
    assert {name: muon[name] for name in shared} == {name: recipe["params"][name] for name in shared}


@pytest.mark.parametrize(("trials", "tries"), [(20, 10), (8, 4), (2, 4), (None, 12)])
def test_half_of_the_trials_are_left_to_the_sampler(trials: int | None, tries: int) -> None:
    """But each recipe is tried, however few trials there are."""
    space = Space.default()
    assert len(first_tries(space, space.models, {}, (), trials)) == tries


def test_an_optimizer_that_is_given_is_the_only_one() -> None:
    space = Space.default().fixed({"model": "cnn", "optimizer": "sgd"})
    assert len(first_tries(space, ["cnn"], {"model": "cnn", "optimizer": "sgd"}, (), None)) == 1
