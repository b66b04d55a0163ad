"""Who may ask, and how often: names of the server, the key, the rate of a client; what browsers are told."""

import hmac
import ipaddress
import time
from collections import OrderedDict

from serving.app.errors import Refusal
from serving.config import ServeConfig

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self)"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# They say nothing of the model's answers: a browser's first visit sends no key, and loads a dozen files.
OPEN_PATHS = frozenset({"/", "/ping", "/health", "/ready", "/version", "/docs", "/openapi.json"})
# Probes call a container by its address.
PROBES = frozenset({"/ping", "/health", "/ready"})
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_CLIENTS = 10_000


class Security:
    """The checks that a request has to pass before anything is done for it.

    Raises Refusal: 400 for a name that is not the server's, 401 without the key, 429 above the rate.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._key = config.api_key.get_secret_value().encode() if config.api_key else None
        self._hosts = config.allowed_hosts or (
            (*LOOPBACK_NAMES, config.host.lower()) if _is_loopback(config.host) else ("*",)
        )
        self._rate = config.rate_limit
        # Of each client, how many requests it may make at once, and when that was; the latest is last.
        self._allowances: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, path: str, client: str, headers: dict[bytes, bytes]) -> None:
        if path not in PROBES:
            self._check_host(headers.get(b"host", b""))
        if path in OPEN_PATHS or path.startswith("/page/"):
            return
        if self._rate:
            self._check_rate(client)
        if self._key is not None:
            self._check_key(headers)

    def _check_host(self, header: bytes) -> None:
        """Else a page of a stranger, whose name is made to point to us, could read our answers."""
        if "*" in self._hosts:
            return
        host = header.decode("latin-1").lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        for allowed in self._hosts:
            if name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])):
                return
        raise Refusal(
            400, "unknown_host", "The server is not called by this name; --allowed-hosts says by which it is."
        )

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        assert self._key is not None
        if not hmac.compare_digest(given, self._key):
            raise Refusal(
                401,
                "wrong_key",
                "The key is missing or wrong: send `Authorization: Bearer <key>` or `X-API-Key: <key>`.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _check_rate(self, client: str) -> None:
        """A bucket that holds a tenth of a minute's requests, at least one, and fills up evenly."""
        now = time.monotonic()
        most = max(1.0, self._rate / 10)
        allowance, since = self._allowances.pop(client, (most, now))
        allowance = min(most, allowance + (now - since) * self._rate / 60)
        self._allowances[client] = (allowance - 1 if allowance >= 1 else allowance, now)
        if len(self._allowances) > MAX_CLIENTS:
            self._allowances.popitem(last=False)
        if allowance < 1:
            seconds = int((1 - allowance) * 60 / self._rate) + 1
            raise Refusal(
                429,
                "too_many_requests",
                f"A client may make {self._rate} requests a minute.",
                {"Retry-After": str(seconds)},
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
