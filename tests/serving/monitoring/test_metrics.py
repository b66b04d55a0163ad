"""The body of /metrics, of one process and of several."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.monitoring.metrics import Metrics
from serving.monitoring.records import Record

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, /, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def labels_of(samples: Samples, name: str) -> list[dict[str, str]]:
    return [dict(labels) for found, labels in samples if found == name]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def record(**fields: object) -> Record:
    known = {"request_id": "r", "time": 1.0, "route": "/predict", "status": 200, "total_ms": 9.0}
    return Record(**(known | fields))  # type: ignore[arg-type]


def test_the_metrics_that_the_dashboard_and_the_alerts_use() -> None:
    metrics = Metrics(["cat", "dog"])
    metrics.observe(record(label="cat", uncertain=True, decode_ms=3.0, score_ms=20.0))
    metrics.observe(record(error_code="not_an_image", decode_ms=0.1))
    metrics.request_ended("/predict", 200, 0.03)
    metrics.batch_size.observe(5)
    metrics.queue_length.set(7)
    metrics.requests_in_flight.set(2)
    metrics.serving("cifar10", "3", "a" * 32, "int8")
    metrics.refused("4")
    metrics.registry_up.set(0)
    metrics.drift({"label": 0.3})
    metrics.request_log_dropped(11)
    metrics.log_lines_dropped(12)
    text, kind = metrics.text()
    samples = read(text)

    assert kind.startswith("text/plain")
    assert value(samples, "cifar_requests_total", route="/predict", status="200") == 1
    assert value(samples, "cifar_request_seconds_count", route="/predict") == 1
    assert value(samples, "cifar_request_seconds_bucket", route="/predict", le="0.025") == 0
    assert value(samples, "cifar_request_seconds_bucket", route="/predict", le="0.05") == 1
    assert value(samples, "cifar_stage_seconds_sum", stage="decode") == pytest.approx(0.0031)
    assert value(samples, "cifar_stage_seconds_sum", stage="score") == pytest.approx(0.02)
    assert value(samples, "cifar_batch_size_bucket", le="4.0") == 0
    assert value(samples, "cifar_batch_size_sum") == 5
    assert value(samples, "cifar_queue_length") == 7
    assert value(samples, "cifar_requests_in_flight") == 2
    assert value(samples, "cifar_predictions_total", label="cat") == 1
    assert value(samples, "cifar_predictions_total", label="dog") == 0
    assert value(samples, "cifar_uncertain_total") == 1
    assert value(samples, "cifar_bad_pictures_total", code="not_an_image") == 1
    served = {"name": "cifar10", "version": "3", "run_id": "a" * 32, "precision": "int8"}
    assert value(samples, "cifar_model_info", **served) == 1
    assert value(samples, "cifar_model_refused", version="4") == 1
    assert value(samples, "cifar_registry_up") == 0
    assert value(samples, "cifar_drift_psi", what="label") == 0.3
    assert value(samples, "cifar_request_log_dropped_total") == 11
    assert value(samples, "cifar_log_lines_dropped_total") == 12
    assert value(samples, "cifar_request_log_up") == 1
    assert value(samples, "process_resident_memory_bytes") == pytest.approx(resident_bytes(), rel=0.5)
    assert 0 < (value(samples, "process_cpu_seconds_total") or 0) <= time.process_time() + 1


def test_a_request_refused_as_a_whole_counts_no_image() -> None:
    metrics = Metrics(["cat"])
    metrics.observe(record(status=503, error_code="overloaded"))
    samples = read(metrics.text()[0])
    assert labels_of(samples, "cifar_bad_pictures_total") == []
    assert value(samples, "cifar_stage_seconds_count", stage="decode") == 0


def test_outdated_series_are_hidden() -> None:
    metrics = Metrics(["cat"])
    metrics.serving("cifar10", "3", "a" * 32, "int8")
    metrics.refused("4")
    metrics.drift({"label": 0.3, "confidence": 0.1})
    metrics.serving("cifar10", "5", "b" * 32, "fp32")
    metrics.serving("cifar10", "5", "b" * 32, "fp32")
    metrics.refused(None)
    metrics.drift({"confidence": 0.2})
    samples = read(metrics.text()[0])
    assert [labels["version"] for labels in labels_of(samples, "cifar_model_info")] == ["5"]
    assert labels_of(samples, "cifar_model_refused") == []
    assert labels_of(samples, "cifar_drift_psi") == [{"what": "confidence"}]
    metrics.refused("6")
    metrics.drift({"label": 0.0})
    samples = read(metrics.text()[0])
    assert labels_of(samples, "cifar_model_refused") == [{"version": "6"}]
    assert value(samples, "cifar_drift_psi", what="label") == 0


def test_dropped_rows_are_counted_once() -> None:
    metrics = Metrics(["cat"])
    for count in (0, 3, 3, 5):
        metrics.request_log_dropped(count)
    assert value(read(metrics.text()[0]), "cifar_request_log_dropped_total") == 5


WORKER = """
import sys
from serving.monitoring.metrics import Metrics
from serving.monitoring.records import Record

number, version = int(sys.argv[1]), sys.argv[2]
metrics = Metrics(["cat", "dog"])
for item in range(number):
    metrics.observe(Record(request_id="r", item=item, time=1, route="/predict", status=200, label="cat",
                           decode_ms=1, score_ms=2, total_ms=3))
metrics.request_ended("/predict", 200, 0.01)
metrics.queue_length.set(number)
metrics.serving("cifar10", "1", "a" * 32, "fp32")
metrics.serving("cifar10", version, "b" * 32, "fp32")
metrics.registry_up.set(number == 3)
metrics.drift({"label": number / 10})
for line in sys.stdin:
    sys.stdout.write(metrics.text()[0].decode() + "# END\\n")
    sys.stdout.flush()
"""


class Worker:
    def __init__(self, folder: Path, number: int, version: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(number), version],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def read(self) -> Samples:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        lines = []
        while (line := self.process.stdout.readline()) != b"# END\n":
            assert line, "the worker has ended"
            lines.append(line)
        return read(b"".join(lines))


@contextmanager
def workers(folder: Path, **versions: str) -> Iterator[list[Worker]]:
    """Start one worker per argument: `of_3="2"` has classified 3 images and serves version 2."""
    started = [
        Worker(folder, int(number.removeprefix("of_")), version) for number, version in versions.items()
    ]
    try:
        for worker in started:
            worker.read()
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.communicate()


def test_any_worker_reports_the_metrics_of_all(tmp_path: Path) -> None:
    with workers(tmp_path, of_3="2", of_5="2") as (one, other):
        first, second = one.read(), other.read()
        for samples in (first, second):
            assert value(samples, "cifar_predictions_total", label="cat") == 8
            assert value(samples, "cifar_predictions_total", label="dog") == 0
            assert value(samples, "cifar_requests_total", route="/predict", status="200") == 2
            assert value(samples, "cifar_request_seconds_bucket", route="/predict", le="+Inf") == 2
            assert value(samples, "cifar_queue_length") == 8
            assert value(samples, "cifar_registry_up") == 0
            assert value(samples, "cifar_drift_psi", what="label") == 0.5
            (served,) = labels_of(samples, "cifar_model_info")
            assert (served["version"], value(samples, "cifar_model_info", **served)) == ("2", 1)
            pids = {labels["pid"] for labels in labels_of(samples, "process_resident_memory_bytes")}
            assert pids == {str(one.process.pid), str(other.process.pid)}
        assert {key for key in first if key[0].startswith("cifar")} == {
            key for key in second if key[0].startswith("cifar")
        }


def test_while_workers_switch_models_both_versions_are_shown(tmp_path: Path) -> None:
    with workers(tmp_path, of_3="2", of_5="3") as (one, _):
        assert {each["version"] for each in labels_of(one.read(), "cifar_model_info")} == {"2", "3"}


def test_counts_of_a_killed_worker_stay_and_its_gauges_go(tmp_path: Path) -> None:
    with workers(tmp_path, of_3="2", of_5="3") as (one, other):
        other.process.send_signal(signal.SIGKILL)
        other.process.wait()
        samples = one.read()
        assert value(samples, "cifar_predictions_total", label="cat") == 8
        assert value(samples, "cifar_queue_length") == 3
        assert value(samples, "cifar_registry_up") == 1
        assert value(samples, "cifar_drift_psi", what="label") == 0.3
        assert [each["version"] for each in labels_of(samples, "cifar_model_info")] == ["2"]
        assert [each["pid"] for each in labels_of(samples, "process_cpu_seconds_total")] == [
            str(one.process.pid)
        ]


def test_empty_files_of_a_starting_worker_are_ignored(tmp_path: Path) -> None:
    with workers(tmp_path, of_3="2") as (one,):
        (tmp_path / f"counter_{os.getpid()}.db").touch()
        (tmp_path / f"gauge_livesum_{os.getpid()}.db").touch()
        assert value(one.read(), "cifar_queue_length") == 3
