"""The Python interface."""

import doctest
import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image, features

import cifar_mlflow
from cifar_mlflow.errors import UsageError
from cifar_mlflow.export.weights import save_weights
from tests.export.models import untrained
from tests.scorer.pictures import scene

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serving").symlink_to(ROOT / "serving")
    page = ROOT / "docs/python.md"
    failed, run = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert (failed, run > 5) == (0, True)


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_store")
def test_a_training_takes_the_architecture_of_its_weights_as_the_command_does(tmp_path: Path) -> None:
    weights = tmp_path / "given.safetensors"
    save_weights(weights, *untrained("cnn"))
    result = cifar_mlflow.train(weights=str(weights), dataset="sample", epochs=1, test=False)
    params = mlflow.MlflowClient().get_run(result.run_id).data.params
    assert (params["model"], params["width"]) == ("cnn", "0.25")


@pytest.fixture(scope="module")
def classifier() -> cifar_mlflow.Classifier:
    return cifar_mlflow.Classifier(*untrained("cnn"))


def test_a_file_its_content_and_its_pixels_get_the_same_answer(
    classifier: cifar_mlflow.Classifier, tmp_path: Path
) -> None:
    photo = scene(70, 50)
    content = io.BytesIO()
    photo.save(content, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(content.getvalue())

    answers = classifier.predict([path, str(path), content.getvalue(), np.asarray(photo)])
    assert answers == [answers[0]] * 4
    assert answers[0].confidence == max(answers[0].probabilities.values())
    assert answers[0].probabilities[answers[0].label] == answers[0].confidence
    assert classifier.predict([]) == []


@pytest.mark.parametrize(
    "image", ["cat.jpg", Path("cat.jpg"), b"\x89PNG\r\n", np.zeros((32, 32, 3), np.uint8)]
)
def test_a_single_image_that_is_not_in_a_list_is_refused(
    classifier: cifar_mlflow.Classifier, image: Any
) -> None:
    with pytest.raises(UsageError, match=r"put a single one into a list, as in \[image\]"):
        classifier.predict(image)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_photo_in_a_format_of_phones_is_answered_as_by_the_service(
    classifier: cifar_mlflow.Classifier, tmp_path: Path
) -> None:
    photo = scene(70, 50)
    photo.save(tmp_path / "photo.avif", quality=100, subsampling="4:4:4")
    from_phone, reference = classifier.predict([tmp_path / "photo.avif", np.asarray(photo)])
    assert from_phone.confidence == pytest.approx(reference.confidence, abs=0.02)


def test_the_image_that_cannot_be_decoded_is_named(
    classifier: cifar_mlflow.Classifier, tmp_path: Path
) -> None:
    good = np.asarray(Image.new("RGB", (8, 8)))
    with pytest.raises(UsageError, match=r"image 1: .*not a picture"):
        classifier.predict([good, b"no picture at all"])
    with pytest.raises(UsageError, match=r"image 0: .*absent"):
        classifier.predict([tmp_path / "absent.png"])
    with pytest.raises(UsageError, match="image 0: an array must be uint8"):
        classifier.predict([good.astype(np.float32)])
