"""`cifar-mlflow serve`: a socket, one or more processes that answer on it, and an end in good order."""

import functools
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from cifar_mlflow.errors import CifarError, UsageError
from serving.app.app import create_app
from serving.app.protocol import BoundedProtocol
from serving.app.state import AppState
from serving.app.supervisor import Supervisor
from serving.config import ServeConfig
from serving.monitoring.logging import log, set_up_logging

SHORTEST_KEY = 16
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 30
# After which a worker that could not begin tries again.
AGAIN_SECONDS = 5


def serve(config: ServeConfig) -> None:
    """Answer until SIGTERM or SIGINT; what was accepted until then is answered.

    Raises:
        UsageError: the port is taken, the address is not ours, the key is short, or there is no such model.
        CifarError: the model cannot be served, or MLflow does not answer.
    """
    if config.api_key is not None and len(config.api_key.get_secret_value()) < SHORTEST_KEY:
        raise UsageError(f"the API key is too short to be safe: it needs {SHORTEST_KEY} characters or more")
    listener = _listen(config.host, config.port)
    set_up_logging()
    with listener:
        address = f"http://{_as_in_url(config.host)}:{listener.getsockname()[1]}"
        if config.workers > 1:
            AppState(config).close()  # says what is wrong once, and not in each worker
            listener.listen(BACKLOG)
            log.info("listening", address=address, workers=config.workers)
            with _ended_by_signals(), tempfile.TemporaryDirectory(dir=_memory()) as figures:
                os.environ["PROMETHEUS_MULTIPROC_DIR"] = figures
                workers = Supervisor(_uvicorn(functools.partial(_application, config), config), [listener])
                workers.run()
            if any(each.exitcode == STARTUP_FAILURE for each in workers.processes):
                raise CifarError("the workers do not start; the log lines above say why")
        else:
            app = create_app(AppState(config))
            listener.listen(BACKLOG)
            log.info("listening", address=address, workers=1)
            with _ended_by_signals():
                if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # by nohup
                    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
                uvicorn.Server(_uvicorn(lambda: app, config)).run([listener])


def _memory() -> Path | None:
    """Where the workers' figures are: they are mapped, and a full disk would kill whoever writes to them."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)  # who calls is refused until the model is there
        except OSError:
            listener.close()
            raise
    except OSError as error:
        where = f"{host}:{port}"
        raise UsageError(
            f"cannot listen on {where}: {error.strerror or error}; --port chooses another, 0 a free one"
        ) from error
    listener.set_inheritable(True)
    return listener


def _uvicorn(factory: Callable[[], ASGIApp], config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        factory,
        factory=True,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # Else anybody on this machine could choose the address that the rate limit goes by.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        server_header=False,
        workers=config.workers,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(config.request_timeout) + 5,
    )


def _application(config: ServeConfig) -> ASGIApp:
    """The app of a worker process."""
    set_up_logging()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of a terminal that is closed; the parent ends us
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        with _ended_at_once_by_signals():
            return create_app(_opened(config))
    except Exception:
        log.exception("not started")
        sys.exit(STARTUP_FAILURE)


def _opened(config: ServeConfig) -> AppState:
    """The service, as soon as it can be had: the parent could, so what fails now is only away or full.

    One worker that replaces another must not end those that answer.
    """
    while True:
        try:
            return AppState(config)
        except (CifarError, OSError, MemoryError) as error:
            log.error("not started", reason=str(error), again_in_seconds=AGAIN_SECONDS)
            time.sleep(AGAIN_SECONDS)


def _end_with_parent() -> None:
    """A worker whose parent was killed would hold the port for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signals(handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    former = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, before in former.items():
            signal.signal(each, before)


def _ended_by_signals() -> AbstractContextManager[None]:
    """Uvicorn stops at a signal, and at last sends it again, to end the process by it: here it ends well."""
    return _signals(lambda *_: None)


def _ended_at_once_by_signals() -> AbstractContextManager[None]:
    """For a worker that does not answer yet and so has nothing to finish."""
    return _signals(signal.SIG_DFL)


def _as_in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
