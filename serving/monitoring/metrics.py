"""What Prometheus is told of the service. The dashboard and the alert rules in `deploy/` go by these names.

With several worker processes each writes its values to files in the folder PROMETHEUS_MULTIPROC_DIR, and
whichever is asked adds up all of them. The parent of the workers sets the variable before this module is
imported, to a folder that is new: what an earlier server left there would be added.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from serving.monitoring.records import Record

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# A value that is not shown: of several processes no series can be removed.
ABSENT = -1.0

disable_created_metrics()  # the time since when each counter counts: as many lines again


class Metrics:
    """The metrics of one process. Threads may share them.

    Gauges and histograms without a method here are for the app to set: a worker shows those of the others as
    they were last set, so each sets its own about once a second.

    Args:
        classes: of the model; each has its counter from the start, as a rate needs a zero to begin with.

    Attributes:
        requests_in_flight: those being answered.
        queue_length: pictures that wait for the network.
        batch_size: images in a batch of the network; `observe` each.
        registry_up, request_log_up: 1 or 0; 1 until the app says otherwise.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        own = CollectorRegistry()
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._source: Collector = _AllWorkers(folder) if folder else own
        if not folder:
            ProcessCollector(registry=own)
        counter = partial(Counter, registry=own)
        seconds = partial(Histogram, buckets=SECONDS, registry=own)
        sum_of_workers, least_of_workers, most_of_workers = (
            partial(Gauge, multiprocess_mode=mode, registry=own) for mode in ("livesum", "livemin", "livemax")
        )
        # `labels` takes longer to find a series than the series to count.
        self._requests = cache(counter("cifar_requests", "Requests answered.", ["route", "status"]).labels)
        self._request_seconds = cache(
            seconds("cifar_request_seconds", "From request to answer.", ["route"]).labels
        )
        stages = seconds("cifar_stage_seconds", "Of a picture: decode; or wait, and score.", ["stage"])
        self._decode, self._score = stages.labels("decode"), stages.labels("score")
        self.batch_size = Histogram(
            "cifar_batch_size", "Images in a batch of the network.", buckets=BATCHES, registry=own
        )
        self.queue_length = sum_of_workers("cifar_queue_length", "Pictures that wait for the network.")
        self.requests_in_flight = sum_of_workers("cifar_requests_in_flight", "Requests being answered.")
        self._predictions = cache(
            counter("cifar_predictions", "Pictures answered, by their class.", ["label"]).labels
        )
        for name in classes:
            self._predictions(name)
        self._uncertain = counter("cifar_uncertain", "Pictures answered with a doubt.")
        self._bad_pictures = cache(
            counter("cifar_bad_pictures", "Pictures that cannot be classified.", ["code"]).labels
        )
        self._model_info = most_of_workers(
            "cifar_model_info", "The model that is served.", ["name", "version", "run_id", "precision"]
        )
        self._model_refused = most_of_workers(
            "cifar_model_refused", "A champion that cannot be served.", ["version"]
        )
        self.registry_up = least_of_workers("cifar_registry_up", "Whether the registry of models answers.")
        self._psi = most_of_workers(
            "cifar_drift_psi", "Distance of the last pictures from the validation images.", ["what"]
        )
        self._dropped = counter("cifar_request_log_dropped", "Records lost as the request log was behind.")
        self.request_log_up = least_of_workers("cifar_request_log_up", "Whether the log can be written.")
        self.registry_up.set(1)
        self.request_log_up.set(1)
        self._dropped_so_far = 0
        self._served: Gauge | None = None
        self._refused: Gauge | None = None
        self._drifting: set[str] = set()

    def observe(self, record: Record) -> None:
        """Count a picture. Of a request that was refused as a whole there is none to count."""
        if record.decode_ms is None:
            return
        self._decode.observe(record.decode_ms / 1000)
        if record.error_code is not None:
            self._bad_pictures(record.error_code).inc()
        if record.label is not None:
            self._predictions(record.label).inc()
        if record.uncertain:
            self._uncertain.inc()
        if record.score_ms is not None:
            self._score.observe(record.score_ms / 1000)

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request, of whatever route. `route` must be one of a few: each makes a series."""
        self._requests(route, status).inc()
        self._request_seconds(route).observe(seconds)

    def turned_away(self, route: str) -> None:
        """Count a request that was answered with 503 at once."""
        self._requests(route, 503).inc()

    def serving(self, name: str, version: str, run_id: str, precision: str) -> None:
        """This is the model now, and no longer the one before."""
        self._served = _instead(self._served, self._model_info.labels(name, version, run_id, precision))

    def refused(self, version: str | None) -> None:
        """This version has the alias but cannot be served; None if all is well."""
        self._refused = _instead(self._refused, self._model_refused.labels(version) if version else None)

    def drift(self, psi: dict[str, float]) -> None:
        """By what, as `DriftWindow.psi` has it; what is not in it is no longer shown."""
        for what in self._drifting - psi.keys():
            self._psi.labels(what).set(ABSENT)
        for what, value in psi.items():
            self._psi.labels(what).set(value)
        self._drifting |= psi.keys()

    def request_log_dropped(self, count: int) -> None:
        """So many records were dropped since the process began."""
        self._dropped.inc(count - self._dropped_so_far)
        self._dropped_so_far = count

    def text(self) -> tuple[bytes, str]:
        """The body of /metrics, and its content type."""
        return generate_latest(_Shown(self._source)), CONTENT_TYPE_LATEST


def _instead(old: Gauge | None, new: Gauge | None) -> Gauge | None:
    if old is not None and old is not new:
        old.set(ABSENT)
    if new is not None:
        new.set(1)
    return new


class _Shown(Collector):
    """What another collector has, without what is absent."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():
            metric.samples = [sample for sample in metric.samples if sample.value != ABSENT]
            yield metric


class _AllWorkers(Collector):
    """The metrics of all processes that write to a folder; memory and CPU of each that lives, by `pid`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def collect(self) -> Iterable[Metric]:
        living = []
        for pid in {int(file.stem.rpartition("_")[2]) for file in self._folder.glob("gauge_live*.db")}:
            if _lives(pid):
                living.append(pid)
            else:
                with suppress(FileNotFoundError):  # another worker was faster
                    mark_process_dead(pid, str(self._folder))
        # A worker that is just starting has made a file with nothing in it, which the library cannot read.
        files = [
            file for file in os.scandir(self._folder) if file.name.endswith(".db") and file.stat().st_size
        ]
        yield from MultiProcessCollector.merge([file.path for file in files])
        processes: dict[str, Metric] = {}
        for pid in sorted(living):
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                whole = processes.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                for sample in metric.samples:
                    whole.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        yield from processes.values()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
