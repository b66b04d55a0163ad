"""Write metrics, params, tags and artifacts to an MLflow run, with retries during an outage."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from cifar_mlflow.config import TrackingConfig
from cifar_mlflow.environment import git_state, installed_packages, library_versions, patience_seconds
from cifar_mlflow.errors import CifarError, first_line
from cifar_mlflow.names import printable
from cifar_mlflow.redact import redact
from cifar_mlflow.settings import Settings
from cifar_mlflow.tracking.metric_queue import MetricQueue
from cifar_mlflow.tracking.retry import is_outage, retry_on_outage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

# MLflow links a model with all metrics that its run has at the step of the model, without their data sets. No
# metric has this step, so that a model has those of `log_model_metrics` alone.
MODEL_STEP = -1


class TrackingLostError(CifarError):
    """MLflow stayed unavailable, so the run is incomplete."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"MLflow at {mlflow.get_tracking_uri()} does not answer; the run lacks {missing}")


def now_ms() -> int:
    """Return the Unix time in milliseconds."""
    return int(time.time() * 1000)


class TrackedRun:
    """An MLflow run that is being written.

    A thread sends the metrics. All other methods write at once and repeat the call during an outage; they
    raise TrackingLostError if it lasts, and CifarError if MLflow refuses.
    """

    def __init__(self, run_id: str, name: str) -> None:
        self.run_id = run_id
        self.name = name
        self._patience = patience_seconds()
        self._client = mlflow.MlflowClient()
        self._queue = MetricQueue(lambda metrics: self._client.log_batch(run_id, metrics=metrics))

    def log_metrics(self, metrics: dict[str, float], step: int, timestamp: int | None = None) -> None:
        """Queue metrics and return at once; an outage loses none.

        Args:
            timestamp: Unix time in milliseconds; None means now.

        Raises:
            CifarError: MLflow refused earlier metrics.
        """
        at = timestamp or now_ms()
        self._queue.put([Metric(name, value, at, step) for name, value in metrics.items()])

    def log_model_metrics(
        self,
        model_id: str,
        metrics: Mapping[str, float],
        datasets: Mapping[str, Dataset],
        *,
        step: int,
        timestamp: int,
    ) -> None:
        """Link metrics of the run to a logged model, and those of a split (`val/...`) to its data set.

        If step and timestamp are those under which the run has the metrics, MLflow adds nothing to the run.

        Args:
            datasets: by the first part of the metrics' names.
        """
        linked = []
        for name, value in metrics.items():
            data = datasets.get(name.partition("/")[0])
            origin = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
            if math.isfinite(value):  # MLflow would store 0 for NaN
                linked.append(Metric(name, value, timestamp, step, model_id=model_id, **origin))
        self._call(lambda: self._client.log_batch(self.run_id, metrics=linked))

    def log_settings(self, config: Settings) -> None:
        """Log the settings as params, except for names in MLflow and the cache, which change nothing."""
        names = {*TrackingConfig.model_fields, "cache_dir"}
        values = config.model_dump(mode="json", exclude=names)
        self.log_params({name: value for name, value in values.items() if value is not None})

    def log_params(self, values: dict[str, Any]) -> None:
        """Log params; keep those that `mlflow run -P` has logged already, as the user wrote them."""
        known = self._call(lambda: self._client.get_run(self.run_id)).data.params
        params = [
            Param(
                name,
                redact(printable(", ".join(value) if isinstance(value, list) else str(value))),
            )
            for name, value in values.items()
            if name not in known
        ]
        self._call(lambda: self._client.log_batch(self.run_id, params=params))

    def set_tags(self, tags: dict[str, Any]) -> None:
        run_tags = [RunTag(key, redact(str(value))) for key, value in tags.items()]
        self._call(lambda: self._client.log_batch(self.run_id, tags=run_tags))

    def clear_error(self) -> None:
        """Remove the tag with the reason why an earlier attempt ended."""
        if "error" in self._call(lambda: self._client.get_run(self.run_id)).data.tags:
            self._call(lambda: self._client.delete_tag(self.run_id, "error"))

    def log_environment(self, hardware: str) -> None:
        """Log the commit, the versions of all libraries, and the device."""
        self.set_tags({**git_state(), "device": hardware})
        self.log_json(library_versions(), "environment/versions.json")
        self.log_text(installed_packages(), "environment/requirements.txt")

    def log_datasets(self, datasets: Mapping[str, Dataset]) -> None:
        """Log data sets as inputs of the run, by context (`train`, `validation`, `test`)."""
        inputs = [
            DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
            for context, dataset in datasets.items()
        ]

        def log() -> None:
            try:
                self._client.log_inputs(self.run_id, inputs)
            except MlflowException as error:
                # MLflow looks a data set up before it creates it, and fails if another run creates it in
                # between. Nothing is written then, and the second attempt finds the data set.
                if error.error_code != "BAD_REQUEST":
                    raise
                self._client.log_inputs(self.run_id, inputs)

        self._call(log)

    def log_model_input(self, model_id: str) -> None:
        """Record that the run evaluates a logged model."""
        models = [LoggedModelInput(model_id)]
        self._call(lambda: self._client.log_inputs(self.run_id, models=models))

    def log_figure(self, figure: "Figure", path: str) -> None:
        """Log the figure as a PNG file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # once; MLflow's log_figure uses savefig, which draws a new figure twice
        pixels = np.asarray(canvas.buffer_rgba())
        self._call(lambda: self._client.log_image(self.run_id, pixels, path))

    def log_json(self, values: Any, path: str) -> None:
        self._call(lambda: self._client.log_dict(self.run_id, values, path))

    def log_text(self, text: str, path: str) -> None:
        self._call(lambda: self._client.log_text(self.run_id, text, path))

    def log_csv(self, table: pd.DataFrame, path: str, *, index: bool = False) -> None:
        self.log_text(table.to_csv(index=index), path)

    def log_file(self, file: Path, folder: str) -> None:
        self._call(lambda: self._client.log_artifact(self.run_id, str(file), folder))

    def log_pytorch_model(self, **arguments: Any) -> str:
        """Call `mlflow.pytorch.log_model` with these arguments; return the id of the logged model."""
        return str(self._call(lambda: mlflow.pytorch.log_model(step=MODEL_STEP, **arguments)).model_id)

    def missing_epochs(self, history: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return the rows of `history` whose metrics are not in the run, because its process was killed."""
        logged = self._call(lambda: self._client.get_metric_history(self.run_id, "train/loss"))
        steps = {metric.step for metric in logged}
        return [row for row in history if row["epoch"] not in steps]

    def flush(self) -> None:
        """Wait until all metrics have arrived.

        Raises:
            TrackingLostError: MLflow is unavailable for too long.
        """
        unsent = self._queue.close(self._patience)
        if unsent:
            steps = sorted({metric.step for metric in unsent})
            raise TrackingLostError(f"the metrics of epochs {steps[0]} to {steps[-1]}")

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return retry_on_outage(call, self._patience)
        except Exception as error:
            if is_outage(error):
                raise TrackingLostError("the results that are logged after the training") from error
            # Each kind of artifact store raises errors of its own.
            raise CifarError(f"the run could not be written to MLflow: {first_line(error)}") from error
