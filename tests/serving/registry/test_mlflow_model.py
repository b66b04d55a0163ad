"""A scorer folder packaged as an MLflow model, used from Python."""

import base64
import io
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from PIL import Image, features

from serving.registry.mlflow_model import REQUIREMENTS, code_digest, log_model, save_model
from tests.scorer_folders import write_scorer_folder

ROOT = Path(__file__).parents[3]


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "png")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def labels(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["label"] for answer in answers]


@pytest.fixture(scope="module")
def saved(scorer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    save_model(scorer_folder, path)
    return path


@pytest.fixture(scope="module")
def model(saved: Path) -> PyFuncModel:
    return mlflow.pyfunc.load_model(str(saved))


@pytest.mark.parametrize("damage", ["change", "add", "remove"])
@pytest.mark.parametrize("file", ["artifacts/code/preprocess.py", "pyfunc.py", "MLmodel", "requirements.txt"])
def test_the_code_digest_changes_with_any_file_of_the_code(
    saved: Path, tmp_path: Path, file: str, damage: str
) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    (copy / "registered_model_meta").write_text("model_name: cifar10")  # as MLflow's download adds it
    (copy / "artifacts/scorer/model.onnx").write_bytes(b"covered by the digest in the card")
    assert code_digest(copy) == code_digest(saved)
    if damage == "change":
        (copy / file).write_text("import os")
    elif damage == "add":
        (copy / file).with_name("os.py").touch()
    else:
        (copy / file).unlink()
    assert code_digest(copy) != code_digest(saved)


def test_bytes_base64_and_data_urls_give_the_same_answer(model: PyFuncModel) -> None:
    red = png("red")
    table = pd.DataFrame({"image": [red, bytearray(red), text(red), f"data:image/png;base64,{text(red)}"]})
    first, *others = model.predict(table)
    assert others == [first] * 3
    assert first["label"] == "red"
    assert first["class_index"] == 0
    assert first["confidence"] == pytest.approx(0.9999, abs=1e-4)
    assert [best["label"] for best in first["top_k"]] == ["red", "green", "blue"]
    assert first["uncertain"] is False


@pytest.mark.parametrize("encode", [bytes, text])
def test_a_parquet_file_of_binary_or_text_is_answered(
    model: PyFuncModel, tmp_path: Path, encode: Any
) -> None:
    pd.DataFrame({"image": [encode(png("blue")), encode(png("lime"))]}).to_parquet(
        tmp_path / "images.parquet"
    )
    assert labels(model.predict(pd.read_parquet(tmp_path / "images.parquet"))) == ["blue", "green"]


def test_a_csv_file_is_answered(model: PyFuncModel, tmp_path: Path) -> None:
    pd.DataFrame({"image": [text(png("blue")), text(png("red"))]}).to_csv(
        tmp_path / "images.csv", index=False
    )
    assert labels(model.predict(pd.read_csv(tmp_path / "images.csv"))) == ["blue", "red"]


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_photo_formats_of_phones_are_answered(model: PyFuncModel, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "red").save(file, kind, quality=90)
    from_phone, plain = model.predict(pd.DataFrame({"image": [file.getvalue(), png("red")]}))
    assert from_phone["label"] == "red"
    assert from_phone["confidence"] == pytest.approx(plain["confidence"], abs=0.01)


def test_heic_without_a_decoder_is_refused_with_what_to_do(
    model: PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails, as if it were not installed
    photo = b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(2000)
    (answer,) = model.predict(pd.DataFrame({"image": [photo]}), params={"on_error": "null"})
    assert answer["error"]["code"] == "unsupported_format"
    assert "save or export the photo as JPEG" in answer["error"]["message"]
    assert "iPhone" in answer["error"]["message"]


def test_the_input_example_is_answered(model: PyFuncModel) -> None:
    assert labels(model.predict(model.input_example)) == ["blue"]


def test_a_table_may_have_any_length_outside_of_the_scoring_server(model: PyFuncModel) -> None:
    colours = ["red", "lime", "blue", "red"] * 500
    expected = ["green" if colour == "lime" else colour for colour in colours]
    assert labels(model.predict(pd.DataFrame({"image": [png(colour) for colour in colours]}))) == expected


def test_a_bad_row_raises_by_default(model: PyFuncModel) -> None:
    with pytest.raises(MlflowException, match=r"^row 1: This is not a picture"):
        model.predict(pd.DataFrame({"image": [png("red"), b"no picture"]}))


def test_with_null_bad_rows_get_errors_and_good_rows_get_answers(model: PyFuncModel) -> None:
    table = pd.DataFrame({"image": [b"", png("red"), None, png("blue")]})
    answers = model.predict(table, params={"on_error": "null", "top_k": 1})
    good = model.predict(pd.DataFrame({"image": [png("red"), png("blue")]}), params={"top_k": 1})
    nothing: dict[str, Any] = {
        "label": None,
        "class_index": None,
        "confidence": None,
        "top_k": [],
        "uncertain": None,
    }
    assert [answers[1], answers[3]] == [{**answer, "error": None} for answer in good]
    for answer, code in [(answers[0], "empty_image"), (answers[2], "missing_image")]:
        error = answer.pop("error")
        assert answer == nothing
        assert error["code"] == code
        assert error.keys() == {"code", "message"}


def test_with_null_all_rows_may_be_bad(model: PyFuncModel) -> None:
    (answer,) = model.predict(pd.DataFrame({"image": ["?"]}), params={"on_error": "null"})
    assert answer["error"]["code"] == "not_base64"


def test_by_default_two_classes_are_both_in_the_answer(tmp_path: Path) -> None:
    # The network still has three outputs; the default of top_k comes from the card.
    folder = write_scorer_folder(tmp_path / "two", classes=["red", "green"])
    save_model(folder, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    (answer,) = model.predict(pd.DataFrame({"image": [png("red")]}))
    assert [best["label"] for best in answer["top_k"]] == ["red", "green"]


def test_an_internal_error_is_logged_and_answered_without_details(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(write_scorer_folder(tmp_path / "scorer", classes=["red", "green"]), tmp_path / "model")
    model = mlflow.pyfunc.load_model(
        str(tmp_path / "model")
    )  # its network has a third output, without a name
    with pytest.raises(MlflowException) as raised:
        model.predict(pd.DataFrame({"image": [png("blue")]}))
    raised.value.message = "the message that MLflow's server sets, which repeats the input"
    assert raised.value.get_http_status_code() == 500
    message = "The model failed; see the server's log."
    assert json.loads(raised.value.serialize_as_json()) == {
        "error_code": "INTERNAL_ERROR",
        "message": message,
        "error": {"code": "internal_error", "message": message},
    }
    assert "IndexError" in caplog.text


def test_a_model_whose_files_were_changed_is_not_loaded(saved: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(saved, tmp_path / "changed")
    with (changed / "artifacts/scorer/model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"model\.onnx was changed"):
        mlflow.pyfunc.load_model(str(changed))


@pytest.mark.parametrize("newest_first", [False, True])
def test_versions_with_different_code_run_side_by_side(
    saved: Path, tmp_path: Path, newest_first: bool
) -> None:
    older = shutil.copytree(saved, tmp_path / "older")
    code = older / "artifacts/code/predictor.py"
    label = '"label": ranked[0]["label"]'
    assert label in code.read_text()
    code.write_text(code.read_text().replace(label, f"{label}.upper()"))
    preprocess = older / "artifacts/code/preprocess.py"
    preprocess.write_text(preprocess.read_text() + "\n\n_image_bytes = image_bytes\n\n\n" + OLDER_PREPROCESS)
    shutil.copytree(saved, tmp_path / "newer")

    names = ["newer", "older"] if newest_first else ["older", "newer"]
    models = {name: mlflow.pyfunc.load_model(str(tmp_path / name)) for name in names}
    table = pd.DataFrame({"image": [png("red")]})
    for _ in range(2):
        assert labels(models["older"].predict(table)) == ["RED"]
        assert labels(models["newer"].predict(table)) == ["red"]
    assert labels(models["older"].predict(pd.DataFrame({"image": ["blank"]}))) == ["RED"]
    with pytest.raises(MlflowException, match="row 0"):
        models["newer"].predict(pd.DataFrame({"image": ["blank"]}))


OLDER_PREPROCESS = """
def image_bytes(value):
    if value == "blank":
        file = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(file, "png")
        return file.getvalue()
    return _image_bytes(value)
"""


@pytest.mark.slow
def test_a_model_runs_without_our_packages_and_without_torch(saved: Path, tmp_path: Path) -> None:
    program = (
        "import sys, mlflow\n"
        f"model = mlflow.pyfunc.load_model({str(saved)!r})\n"
        "print(model.predict(model.input_example)[0]['label'])\n"
        "print(sorted({'torch', 'cifar_mlflow', 'serving', 'tuning'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["blue", "[]"], done.stderr


@pytest.mark.slow
def test_in_the_scoring_server_the_garbage_collector_skips_the_libraries(saved: Path) -> None:
    code = """
import gc, os, sys
import mlflow
from mlflow.pyfunc import scoring_server
mlflow.pyfunc.load_model(sys.argv[1])
before = gc.get_freeze_count()
os.environ[scoring_server._SERVER_MODEL_PATH] = sys.argv[1]
mlflow.pyfunc.load_model(sys.argv[1])
print(before, gc.get_freeze_count())
"""
    output = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert output[0] == "0"
    assert int(output[1]) > 100_000


def test_a_model_contains_no_pickle_and_no_duplicates(saved: Path) -> None:
    suffixes = {
        path.suffix for path in saved.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert list(saved.rglob("pyfunc.py")) == [saved / "pyfunc.py"]
    assert suffixes == {"", ".json", ".onnx", ".py", ".txt", ".yaml"}


def test_the_requirements_are_five_with_the_ranges_of_the_project(saved: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(REQUIREMENTS) < set(project)
    names = [line.split("<")[0].split(">")[0] for line in (saved / "requirements.txt").read_text().split()]
    assert names == ["mlflow", "numpy", "onnxruntime", "pandas", "pillow"]


@pytest.mark.slow
def test_a_scorer_is_logged_to_a_finished_run_and_loaded_from_the_registry(scorer_folder: Path) -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("val/accuracy", 0.5, step=0)
    before = mlflow.get_run(run.info.run_id)
    info = log_model(scorer_folder, run.info.run_id)
    after = mlflow.get_run(run.info.run_id)
    assert mlflow.active_run() is None
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert after.data.params == before.data.params
    assert [output.model_id for output in after.outputs.model_outputs] == [info.model_id]

    version = mlflow.register_model(info.model_uri, "colours").version
    model = mlflow.pyfunc.load_model(f"models:/colours/{version}")
    assert labels(model.predict(pd.DataFrame({"image": [png("red")]}))) == ["red"]
