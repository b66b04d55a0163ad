"""The model as a function of Spark. Needs pyspark and Java, of which neither is a dependency of ours."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from PIL import Image

from serving.registry.mlflow_model import save_model

pyspark_sql = pytest.importorskip("pyspark.sql")

pytestmark = pytest.mark.slow


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        builder = pyspark_sql.SparkSession.builder.master("local[2]")
        session = builder.config("spark.ui.enabled", "false").getOrCreate()
        yield session
        session.stop()


@pytest.fixture(scope="module")
def uri(scorer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model"
    save_model(scorer_folder, path)
    return str(path)


def test_a_struct_has_the_answer_and_more_rows_than_a_request_may_have(spark: Any, uri: str) -> None:
    colours = {"red": "red", "lime": "green", "blue": "blue"}
    rows = [(number, png(colour)) for number, colour in enumerate(list(colours) * 700)]
    table = spark.createDataFrame(rows, "number int, image binary").repartition(2)
    struct = "struct<label:string,class_index:int,confidence:double,uncertain:boolean>"
    classify = mlflow.pyfunc.spark_udf(spark, uri, result_type=struct, env_manager="local")
    answers = table.select("number", classify("image").alias("answer")).orderBy("number").collect()
    assert [row.answer.label for row in answers] == list(colours.values()) * 700
    assert [row.answer.class_index for row in answers] == [0, 1, 2] * 700
    assert answers[0].answer.confidence == pytest.approx(0.9999, abs=1e-4)
    assert answers[0].answer.uncertain is False


def test_without_a_type_there_is_the_whole_answer(spark: Any, uri: str) -> None:
    table = spark.createDataFrame([(png("red"),)], "image binary")
    classify = mlflow.pyfunc.spark_udf(spark, uri, env_manager="local")
    ((answer,),) = table.select(classify("image")).collect()
    assert (answer.label, answer.class_index, answer.uncertain) == ("red", 0, False)
    assert [best.label for best in answer.top_k] == ["red", "green", "blue"]


def test_as_a_string_the_answer_is_the_label(spark: Any, uri: str) -> None:
    table = spark.createDataFrame([(png("red"),), (png("blue"),)], "image binary")
    classify = mlflow.pyfunc.spark_udf(spark, uri, result_type="string", env_manager="local")
    assert {row.label for row in table.select(classify("image").alias("label")).collect()} == {"red", "blue"}


def test_with_null_a_bad_row_fails_no_job(spark: Any, uri: str) -> None:
    table = spark.createDataFrame(
        [(1, png("red")), (2, b"no picture"), (3, None)], "number int, image binary"
    )
    classify = mlflow.pyfunc.spark_udf(
        spark,
        uri,
        result_type="struct<label:string,confidence:double>",
        env_manager="local",
        params={"on_error": "null"},
    )
    rows = table.select("number", classify("image").alias("answer")).orderBy("number").collect()
    assert [row.answer.label for row in rows] == ["red", None, None]
