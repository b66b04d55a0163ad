"""`classify --explain`: a picture for each image that shows what speaks for its answer."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_mlflow.errors import UsageError
from cifar_mlflow.scorer.predictor import Scorer
from serving.batch import classify, load_scorer
from tests.scorer_folders import CLASS_MAP, write_scorer_folder
from tests.serving.batch.test_classify import BLUE, GREEN, RED, paint


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    return load_scorer(str(write_scorer_folder(tmp_path / "model", class_map=CLASS_MAP)))


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_each_classified_image_gets_a_picture_of_its_map(scorer: Scorer) -> None:
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste("red", (0, 0, 16, 32))
    Path("photos").mkdir()
    picture.save("photos/half.png")
    paint("photos/bad.png").write_text("no image")
    summary = classify(["photos"], scorer, explain=Path("photos/reasons"))
    assert summary.labels == {"red": 1}
    assert names("photos/reasons") == ["half.png.png"]
    with Image.open("photos/reasons/half.png.png") as overlay:
        assert overlay.size == (256, 256)
        assert overlay.getpixel((250, 128)) == (0, 0, 0)
        red, _, blue = np.asarray(overlay.convert("RGB"))[128, 40].tolist()
    assert red > 200
    assert blue < 60
    assert classify(["photos"], scorer, explain=Path("photos/reasons")).files == 2  # not the picture


def test_a_picture_whose_name_is_taken_gets_a_number_once(scorer: Scorer) -> None:
    for folder, colour in (("a", RED), ("b", GREEN), ("c", BLUE)):
        paint(f"photos/{folder}/x.png", colour)
    for _ in range(2):
        classify(["photos"], scorer, explain=Path("reasons"))
        assert names("reasons") == ["x.png-2.png", "x.png-3.png", "x.png.png"]


def test_a_model_that_gives_no_maps_is_refused(tmp_path: Path) -> None:
    paint("photos/a.png")
    scorer = load_scorer(str(write_scorer_folder(tmp_path / "old")))
    with pytest.raises(UsageError, match="cannot explain its answers: an earlier release registered it"):
        classify(["photos"], scorer, explain=Path("reasons"))
    assert not Path("reasons").exists()
