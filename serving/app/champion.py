"""The model being served: it follows an alias of the registry and is replaced without interrupting requests.

A thread polls the registry. A new version is loaded and checked while the current one serves, then replaces
it; the old one is closed after its last request. A version that cannot be served is refused: the reason is
kept, and the current version stays. It also stays during an outage of the registry, however long.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.scorer.predictor import Scorer
from cifar_mlflow.tracking.retry import no_answer
from serving.registry.loader import load_scorer
from serving.registry.mlflow_model import SCORER_PATH
from serving.registry.versions import FILE_TAG, facts

logger = logging.getLogger("cifar_mlflow.serve")

_ALIAS_URI = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_VERSION_URI = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[0-9]+)")
# MLflow's error codes for an unknown model and for an alias that no version has.
_NOT_FOUND = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
CHECKED_IMAGES = 8


@dataclass(eq=False)
class ServedModel:
    """A loaded model version.

    Attributes:
        name: of the registered model; for a model that is not registered, its architecture.
        version: its number; for a model that is not registered, the id of its run.
        tags: of the version in the registry.
        requests: how many requests are using it.
        is_retired: whether another version has replaced it; it is closed after its last request.
    """

    scorer: Scorer
    name: str
    version: str
    alias: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    is_retired: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Champion:
    """Holds the current model; the first one is loaded at construction.

    Args:
        model_uri: see `ServeConfig`; only an alias is followed.
        threads: threads of the network; None means one per core.

    Attributes:
        refused: the version that has the alias but cannot be served; None if there is none.
        reason: why it was refused.
        is_vacant: whether no version has the alias any more.
        registry_problem: why the last query of the registry failed; None if it succeeded.
        on_change: called with the new model just before it replaces the current one.

    Raises:
        UsageError: the model does not exist.
        CifarError: the model cannot be served, or MLflow does not answer.
    """

    def __init__(self, model_uri: str, threads: int | None = None) -> None:
        self._model_uri = model_uri
        self._threads = threads
        self._alias = _ALIAS_URI.fullmatch(model_uri)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused_files: object = None
        self.on_change: Callable[[ServedModel], None] = lambda model: None
        self.refused: str | None = None
        self.reason: str | None = None
        self.is_vacant = False
        self.registry_problem: str | None = None
        self._current = self._load_first()
        logger.info("Serving %s", self._current)

    def follow(self, seconds: float) -> None:
        """Poll the registry at this interval until `close`; 0 means never."""
        if self._alias and seconds:
            self._thread = threading.Thread(target=self._watch, args=(seconds,), name="champion", daemon=True)
            self._thread.start()

    @property
    def current(self) -> ServedModel:
        return self._current

    @contextmanager
    def use(self) -> Iterator[ServedModel]:
        """Yield the current model; it stays open within the block, even if another version replaces it."""
        with self._lock:
            model = self._current
            model.requests += 1
        try:
            yield model
        finally:
            with self._lock:
                model.requests -= 1
                is_unused = model.is_retired and not model.requests
            if is_unused:
                _close(model)

    def problems(self) -> list[str]:
        """Return problems for the operator; the text is public, see /ready."""
        problems = []
        if self.refused:
            # Paths of this machine appear only in the log.
            reason = re.sub(r"(?<![\w:])/[^\s:]*/", "", str(self.reason))
            problems.append(f"version {self.refused} is refused: {reason}")
        if self.is_vacant:
            problems.append(f"no version is {self._model_uri} any more; {self._current} goes on serving")
        if self.registry_problem:
            problems.append("the registry does not answer; the log says why")
        return problems

    def close(self) -> None:
        self._stop.set()
        self._current.scorer.close()

    def _load_first(self) -> ServedModel:
        if self._alias:
            version = self._look_up()
            return self._load(version.version, version.tags)
        scorer = self._load_scorer(self._model_uri)
        if registered := _VERSION_URI.fullmatch(self._model_uri):
            return ServedModel(scorer, registered["name"], registered["version"])
        return ServedModel(scorer, str(scorer.card.get("model", "model")), str(scorer.card["run_id"]))

    def _look_up(self) -> Any:
        assert self._alias is not None
        client = mlflow.MlflowClient()
        try:
            return client.get_model_version_by_alias(self._alias["name"], self._alias["alias"])
        except MlflowException as error:
            if error.error_code in _NOT_FOUND:
                raise UsageError(
                    f"there is no {self._model_uri} in {mlflow.get_registry_uri()}: {first_line(error)}; "
                    "see: cifar-mlflow models, or make one with: cifar-mlflow register RUN_ID --promote"
                ) from error
            raise no_answer(mlflow.get_registry_uri(), error) from error

    def _load(self, version: str, tags: dict[str, str]) -> ServedModel:
        assert self._alias is not None
        name = self._alias["name"]
        scorer = self._load_scorer(f"models:/{name}/{version}")
        return ServedModel(scorer, name, str(version), self._alias["alias"], dict(tags))

    def _load_scorer(self, model_uri: str) -> Scorer:
        try:
            scorer = load_scorer(model_uri, self._threads)
        except CifarError:
            raise
        except Exception as error:  # ONNX Runtime has its own exceptions; a card may lack a field
            raise CifarError(f"{model_uri} cannot be loaded: {first_line(error)}") from error
        try:
            _check(scorer)
        except Exception as error:
            scorer.close()
            raise CifarError(f"{model_uri} cannot be served: {first_line(error)}") from error
        return scorer

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self._poll()
            except Exception:  # an unexpected error must not end the thread
                logger.exception("The champion could not be followed")

    def _poll(self) -> None:
        """Query the registry once; serve the version that has the alias if it can be served."""
        try:
            version = self._look_up()
        except UsageError as error:
            if not self.is_vacant:
                logger.warning("%s; %s goes on serving", error, self._current)
            self.is_vacant, self.registry_problem = True, None
            return
        except CifarError as error:
            if self.registry_problem is None:
                logger.warning("%s; %s goes on serving", error, self._current)
            self.registry_problem = first_line(error)
            return
        if self.registry_problem is not None:
            logger.info("The registry is back")
        self.is_vacant, self.registry_problem = False, None
        number = str(version.version)
        if number == self._current.version and _digests(version.tags) == _digests(self._current.tags):
            self.refused = self.reason = self._refused_files = None
            return
        files = (number, _digests(version.tags), self._file_sizes(number))
        if files != self._refused_files:
            self._replace(number, version.tags, files)

    def _replace(self, number: str, tags: dict[str, str], files: object) -> None:
        try:
            new = self._load(number, tags)
        except CifarError as error:
            self.refused, self.reason, self._refused_files = number, first_line(error), files
            logger.error("Version %s is refused, %s goes on serving: %s", number, self._current, error)
            return
        try:
            self.on_change(new)
        except BaseException:
            new.scorer.close()  # the next poll loads it again
            raise
        with self._lock:
            old, self._current = self._current, new
            old.is_retired = True
            is_unused = not old.requests
        if is_unused:
            _close(old)
        self.refused = self.reason = self._refused_files = None
        logger.info("Serving %s in place of %s", new, old)

    def _file_sizes(self, number: str) -> object:
        """Return the files of a version and their sizes: a refused version is tried again after a repair."""
        assert self._alias is not None
        address = f"models:/{self._alias['name']}/{number}/{SCORER_PATH}"
        try:
            files = mlflow.artifacts.list_artifacts(address)
        except Exception as error:  # each kind of artifact store has its own exceptions
            return first_line(error)
        return sorted((file.path, file.file_size) for file in files)


def _close(model: ServedModel) -> None:
    """Close a retired model without waiting: its network may be stuck."""
    threading.Thread(target=model.scorer.close, name="close-model", daemon=True).start()


def _digests(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in facts(tags).items() if key.startswith(FILE_TAG)}


def _check(scorer: Scorer) -> None:
    """Warm the scorer up, and check its answers.

    Raises:
        ValueError: they are not probabilities, or an image scores differently alone and in a batch.
    """
    size = scorer.image_size
    images = np.random.default_rng(0).integers(0, 256, (CHECKED_IMAGES, size, size, 3), dtype=np.uint8)
    batch = scorer.score(images).probabilities
    alone = np.concatenate([scorer.score(images[i : i + 1]).probabilities for i in range(CHECKED_IMAGES)])
    if batch.shape != (CHECKED_IMAGES, len(scorer.classes)):
        raise ValueError(f"it has {batch.shape[1]} outputs but {len(scorer.classes)} names of classes")
    if not (np.isfinite(batch).all() and np.allclose(batch.sum(axis=1), 1, atol=1e-4)):
        raise ValueError("its answers are not probabilities")
    if not np.allclose(batch, alone, atol=1e-2):
        raise ValueError("an image scores differently alone and in a batch")
