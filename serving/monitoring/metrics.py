"""Prometheus metrics of the service. The dashboard and the alert rules in `deploy/` use these names.

With several worker processes, each writes its values to files in the folder PROMETHEUS_MULTIPROC_DIR, and any
of them can return the totals. The parent of the workers sets the variable before this module is imported. The
folder must be new, because files of an earlier server would be added.
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
# Samples with this value are not exported: with several processes, a series cannot be removed.
ABSENT = -1.0

disable_created_metrics()  # creation times, which would double the number of lines


class Metrics:
    """The metrics of one process; its methods may be called from any thread.

    The caller sets the gauges below about once per second, in each process: the process that answers /metrics
    reports the values that the others set last.

    Args:
        classes: class names of the model. Each gets its counter at once, because a rate needs a first zero.

    Attributes:
        requests_in_flight: requests being answered.
        queue_length: images waiting for the network.
        batch_size: histogram of the images per batch of the network.
        registry_up, request_log_up: 1 or 0; initially 1.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        own = CollectorRegistry()
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._source: Collector = _AllWorkers(folder) if folder else own
        if not folder:
            ProcessCollector(registry=own)
        counter = partial(Counter, registry=own)
        seconds = partial(Histogram, buckets=SECONDS, registry=own)
        sum_gauge, min_gauge, max_gauge = (
            partial(Gauge, multiprocess_mode=mode, registry=own) for mode in ("livesum", "livemin", "livemax")
        )
        # Finding a series with `labels` takes longer than counting in it.
        self._requests = cache(counter("cifar_requests", "Requests answered.", ["route", "status"]).labels)
        self._request_seconds = cache(
            seconds("cifar_request_seconds", "Time from request to answer.", ["route"]).labels
        )
        stages = seconds(
            "cifar_stage_seconds", "Time per image: decode, or score (queue and network).", ["stage"]
        )
        self._decode, self._score = stages.labels("decode"), stages.labels("score")
        self.batch_size = Histogram(
            "cifar_batch_size", "Images per batch of the network.", buckets=BATCHES, registry=own
        )
        self.queue_length = sum_gauge("cifar_queue_length", "Images waiting for the network.")
        self.requests_in_flight = sum_gauge("cifar_requests_in_flight", "Requests being answered.")
        self._predictions = cache(
            counter("cifar_predictions", "Images classified, by predicted class.", ["label"]).labels
        )
        for name in classes:
            self._predictions(name)
        self._uncertain = counter("cifar_uncertain", "Images classified as uncertain.")
        self._bad_pictures = cache(
            counter("cifar_bad_pictures", "Images that cannot be classified, by error code.", ["code"]).labels
        )
        self._model_info = max_gauge(
            "cifar_model_info", "Model being served.", ["name", "version", "run_id", "precision"]
        )
        self._model_refused = max_gauge("cifar_model_refused", "Champion that cannot be served.", ["version"])
        self.registry_up = min_gauge("cifar_registry_up", "Whether the model registry answers.")
        self._psi = max_gauge(
            "cifar_drift_psi", "Drift of recent images from the validation images (PSI).", ["what"]
        )
        self._dropped = counter("cifar_request_log_dropped", "Rows and images that were not stored.")
        self._log_lines_dropped = counter("cifar_log_lines_dropped", "Lines of the process log not written.")
        self.request_log_up = min_gauge("cifar_request_log_up", "Whether the request log can be written.")
        self.registry_up.set(1)
        self.request_log_up.set(1)
        self._totals: dict[Counter, int] = {}
        self._served: Gauge | None = None
        self._refused: Gauge | None = None
        self._drifting: set[str] = set()

    def observe(self, record: Record) -> None:
        """Count an image; a record of a request that was refused as a whole is ignored.

        Frames of a live view count for the time per image only.
        """
        if record.decode_ms is None:
            return
        self._decode.observe(record.decode_ms / 1000)
        if record.score_ms is not None:
            self._score.observe(record.score_ms / 1000)
        if record.live:
            return
        if record.error_code is not None:
            self._bad_pictures(record.error_code).inc()
        if record.label is not None:
            self._predictions(record.label).inc()
        if record.uncertain:
            self._uncertain.inc()

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """Count a finished request. Every distinct `route` creates a series."""
        self._requests(route, status).inc()
        self._request_seconds(route).observe(seconds)

    def turned_away(self, route: str) -> None:
        """Count a request that was answered with 503 before any work."""
        self._requests(route, 503).inc()

    def serving(self, name: str, version: str, run_id: str, precision: str) -> None:
        """Show this model as the one being served, instead of the previous one."""
        self._served = _switch(self._served, self._model_info.labels(name, version, run_id, precision))

    def refused(self, version: str | None) -> None:
        """Show a version that has the alias but cannot be served; None if there is none."""
        self._refused = _switch(self._refused, self._model_refused.labels(version) if version else None)

    def drift(self, psi: dict[str, float]) -> None:
        """Show the index of each feature, as from `DriftWindow.psi`; hide that of all other features."""
        for feature in self._drifting - psi.keys():
            self._psi.labels(feature).set(ABSENT)
        for feature, value in psi.items():
            self._psi.labels(feature).set(value)
        self._drifting |= psi.keys()

    def request_log_dropped(self, total: int) -> None:
        """Set the number of rows and images dropped since the process started."""
        self._count_up_to(self._dropped, total)

    def log_lines_dropped(self, total: int) -> None:
        """Set the number of log lines dropped since the process started."""
        self._count_up_to(self._log_lines_dropped, total)

    def _count_up_to(self, counter: Counter, total: int) -> None:
        counter.inc(total - self._totals.get(counter, 0))
        self._totals[counter] = total

    def text(self) -> tuple[bytes, str]:
        """Return the body of /metrics and its content type."""
        return generate_latest(_WithoutAbsent(self._source)), CONTENT_TYPE_LATEST


def _switch(old: Gauge | None, new: Gauge | None) -> Gauge | None:
    """Hide the series `old`, show `new`, and return it."""
    if old is not None and old is not new:
        old.set(ABSENT)
    if new is not None:
        new.set(1)
    return new


class _WithoutAbsent(Collector):
    """Another collector without the samples that are ABSENT."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():
            metric.samples = [sample for sample in metric.samples if sample.value != ABSENT]
            yield metric


class _AllWorkers(Collector):
    """The metrics of all processes that write to a folder, and memory and CPU of the living ones by `pid`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def collect(self) -> Iterable[Metric]:
        living = []
        for pid in {int(file.stem.rpartition("_")[2]) for file in self._folder.glob("gauge_live*.db")}:
            if _is_alive(pid):
                living.append(pid)
            else:
                with suppress(FileNotFoundError):  # another worker has done it
                    mark_process_dead(pid, str(self._folder))
        # A worker that is just starting has created an empty file, which the library cannot read.
        files = [
            file for file in os.scandir(self._folder) if file.name.endswith(".db") and file.stat().st_size
        ]
        yield from MultiProcessCollector.merge([file.path for file in files])
        processes: dict[str, Metric] = {}
        for pid in sorted(living):
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                merged = processes.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                for sample in metric.samples:
                    merged.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        yield from processes.values()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
