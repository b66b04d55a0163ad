"""What is tried before the sampler is asked."""

from pathlib import Path

from tuning.history import first_tries
from tuning.space import Space


def test_models_that_share_a_recipe_are_each_tried_first(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("model: [resnet18, resnet34]\nlr: {low: 0.01, high: 0.5, log: true}\nreplace: true\n")
    space = Space.read(file)
    tries = first_tries(space, space.models, {}, ())
    assert [first["params"] for first in tries] == [
        {"model": "resnet18", "lr": 0.1},
        {"model": "resnet34", "lr": 0.1},
    ]
    assert len({first["origin"] for first in tries}) == 2  # by which those that were tried are known
