"""The path prefix below which a reverse proxy publishes the service, such as /cifar."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = re.compile(rb"(/[A-Za-z0-9._~-]{1,100}){1,10}")


class PathPrefix:
    """ASGI middleware: turns X-Forwarded-Prefix of a trusted proxy into the `root_path` of the request.

    Links, redirects and the servers in the OpenAPI document then have the prefix. It does not matter whether
    the proxy removes it from the path.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Uvicorn sets this port when it takes the client from X-Forwarded-For, which it does for proxies in
        # $FORWARDED_ALLOW_IPS only. No connection comes from it.
        if scope["type"] == "http" and scope["client"] is not None and scope["client"][1] == 0:
            header = dict(scope["headers"]).get(b"x-forwarded-prefix", b"").rstrip(b"/")
            if _PREFIX.fullmatch(header):
                prefix, path = header.decode(), scope["path"]
                if path != prefix and not path.startswith(f"{prefix}/"):
                    path = prefix + path  # ASGI: the path includes the root path
                scope = {**scope, "root_path": prefix, "path": path}
        await self._app(scope, receive, send)
