"""What the service really exposes, as Prometheus reads it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.monitoring.metrics import Metrics
from serving.monitoring.records import Record

CLASSES = ("cat", "dog")
PARTS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="session")
def exposed() -> dict[str, set[str]]:
    """Each time series of /metrics by name, with its labels; and `up`, which Prometheus makes itself."""
    metrics = Metrics(CLASSES)
    for label, code in (("cat", None), (None, "not_an_image")):
        record = Record(
            request_id="r", time=0.0, route="/predict", status=200, total_ms=2.0, decode_ms=1.0, score_ms=1.0,
            label=label, confidence=0.5, uncertain=True, error_code=code, model_version="cifar10/3",
        )  # fmt: skip
        metrics.observe(record)
    metrics.request_ended("/predict", 200, 0.002)
    metrics.serving("cifar10", "3", "run", "int8")
    metrics.refused("4")
    metrics.drift({"label": 0.1})
    body, _ = metrics.text()
    series: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(body.decode()):
        for part in PARTS.get(family.type, ("",)):
            series[family.name + part] = {"le"} if part == "_bucket" else set()
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series
