"""Access control: allowed Host headers, the API key, and the rate limit."""

import hmac
import ipaddress
import socket
import time
from collections import OrderedDict

from serving.app.admission import PROBES
from serving.app.errors import Refusal
from serving.config import ServeConfig

# Public: the page and its files, and routes that reveal nothing about pictures. A browser that opens the page
# sends no key, and loads a dozen files at once.
PUBLIC_PATHS = PROBES | {"/", "/version", "/docs", "/openapi.json"}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_TRACKED_CLIENTS = 10_000


class AccessControl:
    """The checks that a request has to pass before the server does anything for it."""

    def __init__(self, config: ServeConfig) -> None:
        self._key = config.api_key.get_secret_value().encode() if config.api_key else None
        self._hosts = config.allowed_hosts or (
            (*LOOPBACK_NAMES, config.host.lower()) if _is_loopback(config.host) else ("*",)
        )
        self._requests_per_minute = config.rate_limit
        # For each client, how many requests it had left, and when; the most recent client is the last one.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, path: str, client: str, headers: dict[bytes, bytes]) -> None:
        """Check the request.

        Raises:
            Refusal: 400 if the Host is not a name of this server, 401 without the key, 429 above the rate
                limit.
        """
        if path not in PROBES:  # an orchestrator calls a container by its address
            self._check_host(headers.get(b"host", b""))
        if path in PUBLIC_PATHS or path.startswith("/page/"):
            return
        if self._requests_per_minute:
            self._check_rate(client)
        if self._key is not None:
            self._check_key(self._key, headers)

    def _check_host(self, header: bytes) -> None:
        """Prevent DNS rebinding: a foreign web page whose host name resolves to us must not read answers."""
        if "*" in self._hosts:
            return
        host = header.decode("latin-1").lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        for allowed in self._hosts:
            if name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])):
                return
        raise Refusal(
            400, "unknown_host", "The Host header is not a name of this server; see --allowed-hosts."
        )

    def _check_key(self, key: bytes, headers: dict[bytes, bytes]) -> None:
        sent = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(sent, key):
            raise Refusal(
                401,
                "wrong_key",
                "The key is missing or wrong: send `Authorization: Bearer <key>` or `X-API-Key: <key>`.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _check_rate(self, client: str) -> None:
        """Take a token from the client's bucket, which holds a tenth of the requests allowed per minute."""
        now = time.monotonic()
        capacity = max(1.0, self._requests_per_minute / 10)
        left, since = self._buckets.pop(client, (capacity, now))
        left = min(capacity, left + (now - since) * self._requests_per_minute / 60)
        is_allowed = left >= 1
        self._buckets[client] = (left - is_allowed, now)
        if len(self._buckets) > MAX_TRACKED_CLIENTS:
            self._buckets.popitem(last=False)
        if not is_allowed:
            seconds = int((1 - left) * 60 / self._requests_per_minute) + 1
            raise Refusal(
                429,
                "too_many_requests",
                f"A client may send {self._requests_per_minute} requests per minute.",
                {"Retry-After": str(seconds)},
            )


def _is_loopback(host: str) -> bool:
    """Return whether a server at this host can be reached from this machine only.

    The system knows spellings such as 127.1, and names from /etc/hosts.
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:  # the server will not be able to listen either
        return False
    return all(ipaddress.ip_address(str(address[0])).is_loopback for *_, address in found)
