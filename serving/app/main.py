"""`cifar-mlflow serve`: listen, start uvicorn with one or more worker processes, and stop in an orderly way.

Uvicorn limits neither the size of headers nor the time they take: the reverse proxy in front does (see
deploy/nginx.conf). Limits on requests and their bodies are in `middleware.py`, `request_body.py` and
`admission.py`.
"""

import logging
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from filelock import FileLock, Timeout
from starlette.types import ASGIApp

from cifar_mlflow.errors import UsageError
from serving.app.app import create_app
from serving.app.state import AppState
from serving.config import ServeConfig
from serving.monitoring.logging import is_terminal, log, set_up_logging, stderr_lines

MIN_KEY_LENGTH = 16
EVERY_ADDRESS = ("0.0.0.0", "::")  # which a browser cannot open
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 30
# A worker that has not answered uvicorn's supervisor for this long is replaced. A busy machine may take many
# seconds to start one, and the supervisor handles no signals while it waits.
WORKER_HEALTH_SECONDS = 30
RETRY_SECONDS = 5
# Each connection takes a file descriptor; many systems allow 1024 by default but more on request.
OPEN_FILES = 65_536
METRICS_PREFIX = "cifar-mlflow-metrics-"
_CONFIG_VARIABLE = "CIFAR_MLFLOW_WORKER_CONFIG"


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; requests accepted before that are answered.

    Several workers are run by uvicorn's supervisor, which replaces a worker that dies. On SIGHUP it replaces
    all of them, one after the other.

    Raises:
        UsageError: the port is taken, the host is not an address of this machine, the API key is too short,
            or the model does not exist.
        CifarError: the model cannot be served, or MLflow does not answer.
    """
    if config.api_key is not None and len(config.api_key.get_secret_value()) < MIN_KEY_LENGTH:
        raise UsageError(f"the API key is too short to be safe: it needs {MIN_KEY_LENGTH} characters or more")
    set_up_logging()
    _allow_open_files()
    with _bind(config.host, config.port) as listener:
        if config.workers == 1:
            _serve_in_this_process(config, listener)
        else:
            _serve_in_workers(config, listener)


def create_worker_app() -> ASGIApp:
    """Return the app of a worker process, which reads its settings from the environment."""
    set_up_logging()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # sent to all processes of a terminal that is closed
    threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()
    config = ServeConfig.model_validate_json(os.environ[_CONFIG_VARIABLE])
    with _signal_handler(signal.SIG_DFL):  # until the worker serves, there is nothing to finish
        return create_app(_open_state(config))


def _serve_in_this_process(config: ServeConfig, listener: socket.socket) -> None:
    app = create_app(AppState(config))
    _listen(listener, config)
    # Uvicorn handles signals, and raises them again after it has stopped.
    with _signal_handler(lambda *_: None):
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        uvicorn.Server(uvicorn.Config(app, **_uvicorn_settings(config))).run([listener])


def _serve_in_workers(config: ServeConfig, listener: socket.socket) -> None:
    AppState(config).close()  # reports errors once, not in each worker
    _listen(listener, config)
    # Secrets travel in variables of their own, which `ServeConfig` reads anyway.
    if config.api_key is not None:
        os.environ["CIFAR_MLFLOW_API_KEY"] = config.api_key.get_secret_value()
    os.environ["CIFAR_MLFLOW_REQUEST_LOG"] = config.request_log
    os.environ[_CONFIG_VARIABLE] = config.model_dump_json(exclude={"api_key", "request_log"})
    with _metrics_folder() as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        logging.getLogger("uvicorn.error").setLevel(logging.INFO)  # reports each worker that dies
        uvicorn.run(
            f"{__name__}:{create_worker_app.__name__}",
            factory=True,
            fd=listener.fileno(),
            workers=config.workers,
            timeout_worker_healthcheck=WORKER_HEALTH_SECONDS,
            **_uvicorn_settings(config),
        )


def _uvicorn_settings(config: ServeConfig) -> dict[str, Any]:
    return {
        "loop": "uvloop",
        "http": "httptools",
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        # Without the variable, uvicorn would trust the header of any process on this machine, and the rate
        # limit goes by the client's address.
        "proxy_headers": "FORWARDED_ALLOW_IPS" in os.environ,
        "server_header": False,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": int(config.request_timeout) + 5,
    }


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the address but does not listen yet: clients are refused until it does.

    A host name may have several addresses. An IPv4 address is preferred, so that `localhost` and `127.0.0.1`
    are the same: a second server on the port would otherwise not notice the first one.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    return listener


def _listen(listener: socket.socket, config: ServeConfig) -> None:
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another server that was started at the same time has been faster
        raise _cannot_listen(config.host, config.port, error) from error
    port = listener.getsockname()[1]
    if is_terminal():
        host = "localhost" if config.host in EVERY_ADDRESS else config.host
        stderr_lines().write(
            f"\nOpen http://{_authority(host, port)} in a browser. Ctrl-C stops the server.\n\n"
        )
    else:
        address = f"http://{_authority(config.host, port)}"
        log.info("listening", address=address, workers=config.workers)


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(
        f"cannot listen on {_authority(host, port)}: {reason}; --port selects another port, 0 any free one"
    )


def _authority(host: str, port: int) -> str:
    """Return host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _allow_open_files() -> None:
    allowed, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if maximum == resource.RLIM_INFINITY else min(OPEN_FILES, maximum)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, maximum))


@contextmanager
def _metrics_folder() -> Iterator[Path]:
    """Yield a folder for the workers' metrics; remove it afterwards, and those of servers that were killed.

    The metrics are memory-mapped, and a full disk would crash a worker: the folder is in shared memory if
    the system has it. The server holds a lock in its folder, which the kernel frees when the server dies.
    """
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    for file in parent.glob(f"{METRICS_PREFIX}*/lock"):
        with suppress(Timeout, OSError), FileLock(file, timeout=0):  # in use, or another user's
            shutil.rmtree(file.parent, ignore_errors=True)
    # Hidden from other servers that start at this moment until it is locked.
    hidden = Path(tempfile.mkdtemp(prefix=f".{METRICS_PREFIX}", dir=parent))
    folder = hidden.with_name(hidden.name[1:])
    with FileLock(hidden / "lock"):
        hidden.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _open_state(config: ServeConfig) -> AppState:
    """Return the state of a worker; retry until that succeeds.

    The parent has succeeded with the same settings, so the cause is temporary: the registry is unreachable or
    a disk is full. Uvicorn's supervisor would stop all workers if one of them gave up.
    """
    while True:
        try:
            return AppState(config)
        except Exception as error:
            log.error("not started", reason=str(error), again_in_seconds=RETRY_SECONDS)
            time.sleep(RETRY_SECONDS)


def _stop_with_parent() -> None:
    """Stop this worker if its parent is killed: it would otherwise keep the port."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signal_handler(handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    previous = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)
