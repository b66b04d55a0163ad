"""Versions of a registered model: the tags that `register` writes, and the aliases."""

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import mlflow
from mlflow.entities.model_registry import ModelVersion
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.models.card import ServedCard
from cifar_mlflow.tracking.locations import versions_of
from cifar_mlflow.tracking.retry import call_mlflow

FILE_TAG = "sha256."  # followed by the name of a file in the scorer folder
# Tag with what programs need to know of a version, as JSON; the other tags are for people.
RECORD_TAG = "registration"


def version_tags(
    card: ServedCard, files: Mapping[str, str], code_digest: str, eval_set: str, decision: str
) -> dict[str, str]:
    """Return the tags of a new version; `facts` reads them back.

    Args:
        files: sha256 by name of each file in the scorer folder.
        code_digest: see `mlflow_model.code_digest`.
        eval_set: the images that the accuracy was measured on, in words.
        decision: the reason for the precision, in words.
    """
    figures = {
        "val_accuracy": card.metrics.get(f"serve/{card.precision}/val_accuracy"),
        "test_accuracy": card.metrics.get("test/accuracy"),
    }
    record = {
        "classes": card.classes,
        "data_digest": card.data_digest,
        "val_size": card.val_size,
        "split_seed": card.split_seed,
        "agreement": card.metrics["serve/agreement"],
        "judged_by": eval_set,
        "decision": decision,
        "code_digest": code_digest,
        **{f"{FILE_TAG}{name}": digest for name, digest in files.items()},
    }
    return {
        "run_id": card.run_id,
        "model": str(card.model),
        "data": card.data,
        "precision": card.precision,
        **{key: repr(value) for key, value in figures.items() if value is not None},
        RECORD_TAG: json.dumps(record, ensure_ascii=False),
    }


def facts(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that `register` noted in the tags of a version.

    A tag wins over an entry of the record: earlier releases wrote a tag for each entry.
    """
    try:
        record = json.loads(tags.get(RECORD_TAG, "{}"))
    except ValueError:  # edited by hand
        record = {}
    return {**(record if isinstance(record, dict) else {}), **tags}


def model_of_run(run_id: str) -> str | None:
    """Return the name of the registered model that has the newest version of a run; None if none has one."""
    found = call_mlflow(lambda: mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'"))
    newest = max(found, key=lambda version: int(version.creation_timestamp), default=None)
    return newest.name if newest else None


class Version(BaseModel):
    """A version that `register` made, as its tags describe it.

    Attributes:
        val_size: share of the training images that was held out, drawn with `split_seed`.
        val_accuracy: accuracy of the served network; None if no images were held out.
        agreement: share of images with the label that the trained network gives.
        files: sha256 by name, of the scorer folder.
        code_digest: of the MLflow model around it; None if an old release registered the version.
    """

    model_config = ConfigDict(frozen=True)

    number: str
    run_id: str
    precision: str
    classes: tuple[str, ...] | Json[tuple[str, ...]]  # JSON in the tags of earlier releases
    data: str
    data_digest: str
    val_size: float
    split_seed: int
    # Tags can be edited by hand; the bounds also exclude NaN.
    val_accuracy: float | None = Field(None, ge=0, le=1)
    agreement: float
    files: dict[str, str] = Field(min_length=1)
    code_digest: str | None = None

    def __str__(self) -> str:
        accuracy = "none" if self.val_accuracy is None else f"{self.val_accuracy:.4f}"
        return f"version {self.number} ({self.precision}, validation accuracy {accuracy})"

    @classmethod
    def read(cls, version: ModelVersion) -> Self | None:
        """Return the version; None if its tags are not those that `register` writes."""
        noted = facts(version.tags)
        files = {
            key.removeprefix(FILE_TAG): digest for key, digest in noted.items() if key.startswith(FILE_TAG)
        }
        try:
            return cls.model_validate({**noted, "number": str(version.version), "files": files})
        except ValidationError:
            return None


class RegisteredModel:
    """A registered model in MLflow. Every method asks MLflow anew.

    Every method raises UsageError if the model or the version does not exist, and CifarError if MLflow does
    not answer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._client = call_mlflow(mlflow.MlflowClient)

    def version_with_alias(self, alias: str) -> str | None:
        """Return the number of the version that has the alias; None if no version has it."""
        model = call_mlflow(
            lambda: self._client.get_registered_model(self.name),
            missing=f"there is no registered model {self.name} in {mlflow.get_registry_uri()}; "
            "see: cifar-mlflow models, or create a version of it with: cifar-mlflow register RUN_ID",
        )
        number = model.aliases.get(alias)
        return None if number is None else str(number)

    def set_alias(self, alias: str, number: str, expected: str | None) -> None:
        """Move an alias from the version `expected` (None: from no version) to another one.

        MLflow overwrites an alias whatever its value, so this checks the value before and after.

        Raises:
            CifarError: another client moved the alias in the meantime.
        """

        def move() -> None:
            # Checked before each attempt: during an outage of minutes another client may have moved it.
            if self.version_with_alias(alias) != number:
                self.check_alias(alias, expected)
                self._client.set_registered_model_alias(self.name, alias, number)

        call_mlflow(move)
        self.check_alias(alias, number)

    def check_alias(self, alias: str, expected: str | None) -> None:
        """Raise CifarError unless the version `expected` (None: no version) has the alias."""
        number = self.version_with_alias(alias)
        if number != expected:
            raise CifarError(
                f"another client has just made version {number} the {alias} of {self.name}: check whether "
                "that was intended, and try again if not"
            )

    def delete_alias(self, alias: str) -> None:
        call_mlflow(lambda: self._client.delete_registered_model_alias(self.name, alias))

    def get_tag(self, number: str, key: str) -> str | None:
        """Return a tag of a version; None if it has no such tag."""
        tags = call_mlflow(lambda: self._client.get_model_version(self.name, number)).tags
        value: str | None = tags.get(key)
        return value

    def model_id(self, number: str) -> str | None:
        """Return the id of the logged model that a version was made from; None if it was made from files."""
        version = call_mlflow(
            lambda: self._client.get_model_version(self.name, number),
            missing=f"{self.name} has no version {number}",
        )
        # Not `version.model_id`, which MLflow's database does not keep.
        found = re.fullmatch(r"models:/(m-[0-9a-f]+)", version.source or "")
        return found[1] if found else None

    def set_tags(self, number: str, **tags: str) -> None:
        for key, value in tags.items():
            call_mlflow(partial(self._client.set_model_version_tag, self.name, number, key, value))

    def location(self, number: str) -> str:
        """Return the address of the files of a version in the artifact store."""
        return str(
            call_mlflow(lambda: self._client.get_model_version_download_uri(self.name, number)),
        )

    def list_versions(self) -> list[Version]:
        """Return the versions that `register` made, oldest first."""
        found = call_mlflow(lambda: versions_of(self.name))
        return [version for each in reversed(found) if (version := Version.read(each))]

    def find_version(self, number: str) -> Version | None:
        """Return a version; None if `register` did not make it."""
        return Version.read(
            call_mlflow(
                lambda: self._client.get_model_version(self.name, number),
                missing=f"{self.name} has no version {number}",
            )
        )

    def get_version(self, number: str) -> Version:
        """Return a version.

        Raises:
            UsageError: `register` did not make it.
        """
        version = self.find_version(number)
        if version is None:
            raise UsageError(
                f"version {number} of {self.name} was not made by cifar-mlflow register, so its training "
                "data and accuracy are unknown"
            )
        return version
