"""The promotion rule, rollback, and promotions that are interrupted or concurrent."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE

from cifar_mlflow.errors import CifarError, UsageError
from serving.registry.promotion import NotPromotedError
from tests.serving.registry.conftest import Registry, Trained, promote, rollback

pytestmark = pytest.mark.slow


@pytest.fixture
def ladder(registry: Registry) -> dict[str, str]:
    """Return versions by validation accuracy in percent; the one with 70 is the champion."""
    numbers = {f"{percent}": registry.add(val_accuracy=percent / 100) for percent in (60, 70, 80, 90)}
    promote(numbers["70"])
    return numbers


def test_the_first_version_becomes_champion_without_comparison(registry: Registry) -> None:
    done = promote("1")
    assert (done.name, done.champion, done.previous) == ("cifar10", "1", None)
    assert registry.aliases == {"champion": "1"}
    assert done.message.startswith("version 1 (fp32, validation accuracy 0.")
    assert done.message.endswith(") is now the champion of cifar10")


def test_a_better_version_becomes_champion_and_is_tagged(registry: Registry, ladder: dict[str, str]) -> None:
    done = promote(ladder["80"])
    assert (done.champion, done.previous) == (ladder["80"], ladder["70"])
    assert registry.aliases == {"champion": ladder["80"], "previous": ladder["70"]}
    assert done.message == (
        f"version {ladder['80']} (fp32, validation accuracy 0.8000) is now the champion of cifar10; "
        f"before, it was version {ladder['70']} (fp32, validation accuracy 0.7000)"
    )
    tags = registry.version(ladder["80"]).tags
    assert (tags["promoted"], tags["promoted_over"]) == (done.message, ladder["70"])
    assert abs((datetime.fromisoformat(tags["promoted_at"]) - datetime.now(UTC)).total_seconds()) < 60


def test_an_equally_good_version_becomes_champion_if_it_is_named(
    registry: Registry, ladder: dict[str, str]
) -> None:
    assert promote(registry.add(val_accuracy=0.7, precision="int8")).previous == ladder["70"]


def test_a_worse_version_is_refused_and_nothing_changes(registry: Registry, ladder: dict[str, str]) -> None:
    with pytest.raises(
        NotPromotedError, match=rf"version {ladder['60']} .*0\.6000.* is worse than the champion, .*0\.7000"
    ):
        promote(ladder["60"])
    assert registry.aliases == {"champion": ladder["70"]}
    assert "promoted" not in registry.version(ladder["60"]).tags


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"classes": json.dumps(["blue", "green", "rot"])}, r"different classes \(blue, green, rot; blue, g"),
        ({"classes": json.dumps(["green", "blue", "red"])}, "different classes"),
        ({"data_digest": "f" * 64, "data": "else"}, "trained on different data .else, ffffffffffff; images"),
        ({"val_size": "0.25"}, r"validation images \(--val-size 0\.25 --split-seed 7; --val-size 0\.5"),
        ({"split_seed": "8"}, "different validation images"),
        ({"without": "val_accuracy"}, "no images were held out for validation"),
    ],
)  # fmt: skip
def test_a_version_that_is_not_comparable_is_refused_unless_forced(
    registry: Registry, ladder: dict[str, str], tags: dict[str, Any], reason: str
) -> None:
    number = registry.add(**({} if "without" in tags else {"val_accuracy": 0.99}) | tags)
    with pytest.raises(NotPromotedError, match=f"cannot be compared .*{reason}.* promote {number} --force"):
        promote(number)
    assert registry.aliases == {"champion": ladder["70"]}
    done = promote(number, force=True)
    assert registry.aliases == {"champion": number, "previous": ladder["70"]}
    assert "It was forced: it cannot be compared" in done.message
    assert "--force" not in done.message
    assert registry.version(number).tags["promoted"] == done.message


def test_a_worse_version_can_be_forced(registry: Registry, ladder: dict[str, str]) -> None:
    assert "It was forced: it is worse" in promote(ladder["60"], force=True).message
    assert registry.aliases == {"champion": ladder["60"], "previous": ladder["70"]}


def test_the_champion_is_not_promoted_again_and_previous_stays(
    registry: Registry, ladder: dict[str, str]
) -> None:
    promote(ladder["80"])
    for force in (False, True):
        with pytest.raises(
            NotPromotedError, match=f"version {ladder['80']} .* is the champion of cifar10 already"
        ):
            promote(ladder["80"], force=force)
    assert registry.aliases == {"champion": ladder["80"], "previous": ladder["70"]}


@pytest.mark.parametrize("missing", ["agreement", "val_size", "classes", "run_id"])
def test_a_version_that_register_did_not_make_is_refused_even_by_force(
    registry: Registry, ladder: dict[str, str], missing: str
) -> None:
    number = registry.add(without=missing)
    with pytest.raises(
        UsageError, match=f"version {number} of cifar10 was not made by cifar-mlflow register"
    ):
        promote(number, force=True)
    assert registry.aliases == {"champion": ladder["70"]}


def test_a_champion_that_register_did_not_make_is_replaced_by_force_only(registry: Registry) -> None:
    stranger = str(registry.client.create_model_version("cifar10", "s3://somewhere/model").version)
    registry.client.set_registered_model_alias("cifar10", "champion", stranger)
    with pytest.raises(NotPromotedError, match="the champion was not made by cifar-mlflow register"):
        promote("1")
    assert f"before, it was version {stranger}" in promote("1", force=True).message
    with pytest.raises(UsageError, match=f"version {stranger} .* was not made by"):
        rollback()
    assert registry.aliases == {"champion": "1", "previous": stranger}


def test_by_default_the_best_version_is_promoted(registry: Registry, ladder: dict[str, str]) -> None:
    best = registry.add(val_accuracy=0.998)
    registry.add(val_accuracy=0.999, split_seed=1)
    registry.client.create_model_version("cifar10", "s3://somewhere/model")
    assert promote().champion == best
    with pytest.raises(NotPromotedError, match="already, and no comparable version is better"):
        promote()
    registry.add(val_accuracy=0.998)
    with pytest.raises(NotPromotedError, match="already"):
        promote()


def test_by_default_versions_are_compared_with_the_newest_without_a_champion(registry: Registry) -> None:
    registry.add(val_accuracy=0.999, split_seed=1)
    best = registry.add(val_accuracy=0.998)
    registry.add(val_accuracy=0.6)
    assert promote().champion == best


def test_by_default_the_newest_version_is_promoted_if_none_is_comparable(registry: Registry) -> None:
    assert promote().champion == "2"  # of the run on all images


def test_a_run_id_selects_its_newest_version(registry: Registry, trained: Trained) -> None:
    registry.add(val_accuracy=0.5)
    newest = registry.add(val_accuracy=0.6)
    registry.add(val_accuracy=0.7, run_id="e" * 32)
    assert promote(trained.run_id).champion == newest
    with pytest.raises(UsageError, match=f"no version of run {'d' * 32}; .*cifar-mlflow register {'d' * 32}"):
        promote("d" * 32)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("99", "cifar10 has no version 99"),
        ("newest", "neither the number of a version nor the id of a run: newest"),
    ],
)
def test_a_version_that_does_not_exist_is_named(registry: Registry, which: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        promote(which)


def test_a_model_that_does_not_exist_is_named(registry: Registry) -> None:
    for act in (promote, rollback):
        with pytest.raises(
            UsageError, match=r"no registered model other in sqlite.*cifar-mlflow register RUN_ID"
        ):
            act(name="other")


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("sha256.model.onnx", "model.onnx"), ("sha256.scorer.json", "scorer.json"), ("sha256.more", "more"),
        ("code_digest", "the code of the model"),
    ],
)  # fmt: skip
def test_a_version_with_damaged_files_is_refused_even_by_force(
    registry: Registry, ladder: dict[str, str], tag: str, file: str
) -> None:
    number = registry.add(val_accuracy=0.99, **{tag: "0"})
    with pytest.raises(
        CifarError, match=f"version {number} of cifar10 cannot be served: {file} is missing or"
    ):
        promote(number, force=True)
    assert registry.aliases == {"champion": ladder["70"]}


def test_a_version_whose_artifact_folder_was_moved_is_not_promoted(
    registry: Registry, ladder: dict[str, str], tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    version = registry.client.create_model_version(
        "cifar10", gone.as_uri(), tags=registry.original.tags | {"val_accuracy": "0.99"}
    )
    with pytest.raises(UsageError, match=f"version {version.version} of cifar10 should be in {gone}, "):
        promote(str(version.version))
    assert registry.aliases == {"champion": ladder["70"]}


def test_a_version_that_was_used_in_place_can_be_promoted(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    mlflow.pyfunc.load_model("models:/cifar10/1")
    model = Path(mlflow.artifacts.download_artifacts("models:/cifar10/1"))
    assert list(model.rglob("__pycache__/*.pyc"))
    assert promote("1").champion == "1"


def test_a_version_without_a_code_digest_can_be_promoted(registry: Registry) -> None:
    assert promote(number := registry.add(without="code_digest")).champion == number


def test_a_second_rollback_undoes_the_first(registry: Registry, ladder: dict[str, str]) -> None:
    promote(ladder["80"])
    done = rollback()
    assert (done.champion, done.previous) == (ladder["70"], ladder["80"])
    assert registry.aliases == {"champion": ladder["70"], "previous": ladder["80"]}
    assert f"version {ladder['70']} " in done.message
    assert f"is the champion of cifar10 again, in place of version {ladder['80']}" in done.message
    assert done.message.endswith("another rollback would undo this")
    assert registry.version(ladder["70"]).tags["promoted_over"] == ladder["80"]
    assert registry.version(ladder["80"]).tags["rolled_back_to"] == ladder["70"]
    assert rollback().champion == ladder["80"]
    assert registry.aliases == {"champion": ladder["80"], "previous": ladder["70"]}


def test_rollback_without_a_previous_champion_is_an_error(registry: Registry, ladder: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="cifar10 has no previous champion to go back to"):
        rollback()
    promote(ladder["80"])
    registry.client.delete_model_version("cifar10", ladder["70"])
    with pytest.raises(UsageError, match="no previous champion"):
        rollback()
    assert registry.aliases == {"champion": ladder["80"]}


def test_rollback_works_after_the_champion_was_deleted(registry: Registry, ladder: dict[str, str]) -> None:
    promote(ladder["80"])
    registry.client.delete_model_version("cifar10", ladder["80"])
    with pytest.raises(NotPromotedError, match="is worse than the champion"):
        promote(ladder["60"])
    done = rollback()
    assert (done.champion, done.previous) == (ladder["70"], None)
    assert registry.aliases == {"champion": ladder["70"]}


def test_the_previous_champion_can_be_promoted_after_the_champion_was_deleted(
    registry: Registry, ladder: dict[str, str]
) -> None:
    promote(ladder["80"])
    registry.client.delete_model_version("cifar10", ladder["80"])
    assert promote(ladder["70"]).previous is None
    assert registry.aliases == {"champion": ladder["70"]}


@pytest.mark.parametrize(
    "tags", [{"val_accuracy": "nan"}, {"val_accuracy": "7"}, {"classes": "5"}, {"classes": "null"}]
)
def test_a_version_with_invalid_tags_is_refused_and_ignored(
    registry: Registry, ladder: dict[str, str], tags: dict[str, str]
) -> None:
    odd = registry.add(**tags)
    with pytest.raises(UsageError, match=f"version {odd} of cifar10 was not made by"):
        promote(odd, force=True)
    assert promote().champion == ladder["90"]


class Killed(Exception):  # noqa: N818 - stands for a killed process
    pass


@pytest.mark.parametrize("act", ["promote", "rollback"])
def test_after_a_kill_halfway_the_champion_is_served_and_a_retry_works(
    registry: Registry, ladder: dict[str, str], act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(ladder["80"])
    set_alias = mlflow.MlflowClient.set_registered_model_alias
    with monkeypatch.context() as patch:
        calls: list[str] = []

        def once(self: mlflow.MlflowClient, name: str, alias: str, version: str) -> None:
            if calls:
                raise Killed
            calls.append(alias)
            set_alias(self, name, alias, version)

        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", once)
        with pytest.raises(CifarError):
            promote(ladder["90"]) if act == "promote" else rollback()
    assert registry.aliases["champion"] == ladder["80"]
    assert [rollback().champion, rollback().champion] == [ladder["70"], ladder["80"]]
    promote(ladder["90"])
    assert registry.aliases == {"champion": ladder["90"], "previous": ladder["80"]}


@pytest.mark.parametrize("moment", ["before", "after", "in an outage"])
def test_a_promotion_by_another_machine_at_the_same_time_is_detected(
    registry: Registry, ladder: dict[str, str], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_alias = mlflow.MlflowClient.set_registered_model_alias
    download = mlflow.artifacts.download_artifacts

    def promote_elsewhere() -> None:
        set_alias(registry.client, "cifar10", "champion", ladder["90"])

    def overtaken(self: mlflow.MlflowClient, name: str, alias: str, version: str) -> None:
        set_alias(self, name, alias, version)
        promote_elsewhere()

    def late(self: mlflow.MlflowClient, name: str, alias: str, version: str) -> None:
        if alias != "champion" or registry.aliases["champion"] == ladder["90"]:
            set_alias(self, name, alias, version)
            return
        promote_elsewhere()
        raise MlflowException("the database is away", TEMPORARILY_UNAVAILABLE)

    def slow(*arguments: Any, **options: Any) -> Any:
        promote_elsewhere()
        return download(*arguments, **options)

    if moment == "before":
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", slow)
    else:
        monkeypatch.setattr(
            mlflow.MlflowClient, "set_registered_model_alias", overtaken if moment == "after" else late
        )
    with pytest.raises(CifarError, match=f"another client has just made version {ladder['90']} the champion"):
        promote(ladder["80"])
    assert registry.aliases["champion"] == ladder["90"]


PROMOTER = """
import pathlib, sys, time
from cifar_mlflow.errors import CifarError
from serving.registry.promotion import promote
ready, *numbers = sys.argv[1:]
pathlib.Path(ready).touch()
while not pathlib.Path("go").exists():
    time.sleep(0.001)
for number in numbers:
    try:
        promote(number, "cifar10")
    except CifarError as error:
        print(error)
"""


def test_two_processes_that_promote_at_once_leave_one_chain_of_champions(
    registry: Registry, ladder: dict[str, str], tmp_path: Path
) -> None:
    numbers = [registry.add(val_accuracy=0.91 + i / 1000) for i in range(10)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTER, f"ready{i}", *numbers[i::2]], stdout=subprocess.PIPE
        )
        for i in range(2)
    ]
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"ready{i}").exists() for i in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "go").touch()
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert all("is worse than" in line for line in output.decode().splitlines()), output
    best = numbers[-1]
    over = {
        number: tags["promoted_over"]
        for number in numbers
        if "promoted_over" in (tags := registry.version(number).tags)
    }
    assert registry.aliases == {"champion": best, "previous": over[best]}
    # The tags lead from the last champion back to the first one through every champion.
    chain = [best]
    while chain[-1] in over:
        chain.append(over[chain[-1]])
    assert sorted(chain, key=int) == sorted({*over, ladder["70"]}, key=int)
    assert chain[-1] == ladder["70"]


def test_the_tag_for_rollback_is_written_before_the_alias(
    registry: Registry, ladder: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0.1")
    lost = {"promoted", "promoted_at"}

    def tag(
        self: mlflow.MlflowClient, name: str, version: str, key: str, value: str,
        set_tag: Any = mlflow.MlflowClient.set_model_version_tag,
    ) -> None:  # fmt: skip
        if key in lost:
            raise MlflowException("the database is away", TEMPORARILY_UNAVAILABLE)
        set_tag(self, name, version, key, value)

    monkeypatch.setattr(mlflow.MlflowClient, "set_model_version_tag", tag)
    promote(ladder["80"])
    assert registry.version(ladder["80"]).tags["promoted_over"] == ladder["70"]
    lost.add("promoted_over")
    for act in (lambda: promote(ladder["90"]), rollback):
        with pytest.raises(CifarError, match="does not answer"):
            act()
        assert registry.aliases == {"champion": ladder["80"], "previous": ladder["70"]}


@pytest.mark.parametrize("number", ["4000000000", "9" * 19, "9" * 5000])
def test_a_number_too_large_for_a_database_is_reported_as_unknown(registry: Registry, number: str) -> None:
    with pytest.raises(UsageError, match="cifar10 has no version"):
        promote(number)


def test_a_store_that_cannot_be_opened_is_reported(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no.db").write_text("no database, but a file that is longer than the head of one" * 10)
    for uri in (f"sqlite:///{tmp_path / 'no.db'}", "nothing://here"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for act in (promote, rollback):
            with pytest.raises(CifarError, match="refuses"):
                act()


def test_a_registry_that_is_unreachable_or_refuses_is_reported(
    registry: Registry, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_MLFLOW_PATIENCE", "0.1")

    def refuse(*_: object) -> None:
        raise MlflowException("not for you", error_code=PERMISSION_DENIED)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", refuse)
        with pytest.raises(CifarError, match=r"MLflow at sqlite:.* refuses: not for you"):
            promote("1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:S3cret@127.0.0.1:{free_port}")
    for act in (promote, rollback):
        with pytest.raises(
            CifarError, match=rf"MLflow at http://alice:\*\*\*@127.0.0.1:{free_port} does not answer"
        ):
            act()
