"""The versions of a registered model, as MLflow's registry has them: their tags and their aliases."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import mlflow
from mlflow.entities.model_registry import ModelVersion

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.tracking.retry import call_mlflow

FILE_TAG = "sha256."  # followed by the name of a file in the scorer folder


@dataclass(frozen=True)
class Version:
    """A version that `register` made.

    Attributes:
        number: empty as long as it is not registered.
        val_size: share of the training images that was held out, by `split_seed`.
        val_accuracy: of the served form; None where no images were held out.
        agreement: share of images to which it gives the label that the trained network gives.
        files: sha256 by name, of the scorer folder.
        code: `code_digest` of the MLflow model around it; None if `register` was older and noted none.
    """

    run_id: str
    precision: str
    classes: tuple[str, ...]
    data: str
    data_digest: str
    val_size: float
    split_seed: int
    val_accuracy: float | None
    agreement: float
    files: dict[str, str]
    code: str | None = None
    number: str = ""

    def __str__(self) -> str:
        accuracy = "none" if self.val_accuracy is None else f"{self.val_accuracy:.4f}"
        return f"version {self.number} ({self.precision}, validation accuracy {accuracy})"

    def tags(self) -> dict[str, str]:
        """What the version carries in the registry; `read` is the way back."""
        return {
            "run_id": self.run_id,
            "precision": self.precision,
            "classes": json.dumps(self.classes),
            "data": self.data,
            "data_digest": self.data_digest,
            "val_size": repr(self.val_size),
            "split_seed": str(self.split_seed),
            "agreement": repr(self.agreement),
            **({} if self.val_accuracy is None else {"val_accuracy": repr(self.val_accuracy)}),
            **({} if self.code is None else {"code_digest": self.code}),
            **{f"{FILE_TAG}{name}": digest for name, digest in self.files.items()},
        }

    @classmethod
    def read(cls, version: ModelVersion) -> Self | None:
        """None for a version that `register` did not make."""
        tags = version.tags
        files = {
            key.removeprefix(FILE_TAG): digest for key, digest in tags.items() if key.startswith(FILE_TAG)
        }
        if not files:
            return None
        try:
            read = cls(
                run_id=tags["run_id"],
                precision=tags["precision"],
                classes=tuple(json.loads(tags["classes"])),
                data=tags["data"],
                data_digest=tags["data_digest"],
                val_size=float(tags["val_size"]),
                split_seed=int(tags["split_seed"]),
                val_accuracy=float(tags["val_accuracy"]) if "val_accuracy" in tags else None,
                agreement=float(tags["agreement"]),
                files=files,
                code=tags.get("code_digest"),
                number=str(version.version),
            )
        except (KeyError, ValueError, TypeError):
            return None
        # Tags can be edited by hand. A NaN is not in the range, nor is it less than anything.
        is_accuracy = read.val_accuracy is None or 0 <= read.val_accuracy <= 1
        return read if is_accuracy and all(isinstance(name, str) for name in read.classes) else None


class RegisteredModel:
    """The registered model as it is in MLflow at the moment of each question.

    Each method raises UsageError where the model or the version does not exist, and CifarError where MLflow
    does not answer.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._client = call_mlflow(mlflow.MlflowClient)

    def holder(self, alias: str) -> str | None:
        """The number of the version that has the alias."""
        model = call_mlflow(
            lambda: self._client.get_registered_model(self.name),
            missing=f"there is no registered model {self.name} in {mlflow.get_registry_uri()}; "
            "make a version of it with: cifar-mlflow register RUN_ID",
        )
        holder = model.aliases.get(alias)
        return None if holder is None else str(holder)

    def give(self, alias: str, number: str, over: str | None) -> None:
        """Give the alias of a version (None: of nobody) to another, and look whether that holds.

        Raises:
            CifarError: somebody else gave it to another version meanwhile.
        """

        def write() -> None:
            # Looked at before each attempt: in an outage of minutes others may have been here.
            if (holder := self.holder(alias)) != number:
                self._expect(alias, over, holder)
                self._client.set_registered_model_alias(self.name, alias, number)

        call_mlflow(write)
        self.expect(alias, number)

    def take(self, alias: str) -> None:
        """Take the alias from whatever version has it."""
        call_mlflow(lambda: self._client.delete_registered_model_alias(self.name, alias))

    def noted(self, number: str, key: str) -> str | None:
        """A tag of a version."""
        value: str | None = call_mlflow(lambda: self._client.get_model_version(self.name, number)).tags.get(
            key
        )
        return value

    def expect(self, alias: str, number: str | None) -> None:
        """Raise CifarError if the alias is not with this version (or with none)."""
        self._expect(alias, number, self.holder(alias))

    def _expect(self, alias: str, number: str | None, holder: str | None) -> None:
        if holder != number:
            raise CifarError(
                f"somebody else has just made version {holder} the {alias} of {self.name}: look whether it "
                "should be, and try again if not"
            )

    def tag(self, number: str, **tags: Any) -> None:
        for key, value in tags.items():
            call_mlflow(partial(self._client.set_model_version_tag, self.name, number, key, value))

    def all_ours(self) -> list[Version]:
        """The versions that `register` made, the oldest first."""
        found = call_mlflow(lambda: self._client.search_model_versions(f"name = '{self.name}'"))
        found = sorted(found, key=lambda version: int(version.version))
        return [ours for version in found if (ours := Version.read(version))]

    def ours(self, number: str) -> Version:
        """A version that `register` made.

        Raises:
            UsageError: it came from elsewhere.
        """
        version = self.look_up(number)
        if version is None:
            raise UsageError(
                f"version {number} of {self.name} was not made by cifar-mlflow register: what it was trained "
                "and measured on is not known"
            )
        return version

    def look_up(self, number: str) -> Version | None:
        """A version; None if it came from elsewhere."""
        return Version.read(
            call_mlflow(
                lambda: self._client.get_model_version(self.name, number),
                missing=f"{self.name} has no version {number}",
            )
        )
