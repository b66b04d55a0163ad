"""The metrics that the service exposes, and nginx in front of a service."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.monitoring.metrics import Metrics
from serving.monitoring.records import Record
from tests.deploy.proxy import NGINX, Recorder, Service, nginx
from tests.scorer_folders import write_scorer_folder

CLASSES = ("cat", "dog")
PARTS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="session")
def exposed() -> dict[str, set[str]]:
    """Map each time series of /metrics to its labels, including `up`, which Prometheus adds."""
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


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start the service that the tests put behind nginx."""
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    folder = tmp_path_factory.mktemp("proxied")
    service = Service(folder, write_scorer_folder(folder / "scorer"))
    try:
        yield service.wait()
    finally:
        service.stop()


@pytest.fixture(scope="session")
def port(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of an nginx with the shipped configuration."""
    with nginx(tmp_path_factory.mktemp("nginx"), service.address) as port:
        yield port


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start further instances of nginx; they end with the test."""
    with ExitStack() as stack:
        yield lambda upstream, **options: stack.enter_context(nginx(tmp_path / "nginx", upstream, **options))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()
