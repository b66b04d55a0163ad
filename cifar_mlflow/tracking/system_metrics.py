"""The load of the machine as metrics of a run, from its second minute on: a short run has none."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cifar_mlflow.errors import first_line

logger = logging.getLogger(__name__)

FIRST_MINUTE = 60.0  # seconds
SECONDS_TO_END = 5.0  # an outage must not keep a finished run waiting


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Let MLflow log the load of processor, memory, disk and network while the block runs."""
    ended = threading.Event()
    thread = threading.Thread(target=_monitor, args=(run_id, ended), daemon=True, name="system-metrics")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SECONDS_TO_END)


def _monitor(run_id: str, ended: threading.Event) -> None:
    if ended.wait(FIRST_MINUTE):
        return
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it announces start and end
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True)
        monitor.start()
        ended.wait()
        monitor.finish()
    except Exception as error:  # they are no reason to end a training
        logger.warning("The load of the machine is not logged: %s", first_line(error))
