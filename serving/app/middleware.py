"""Every request goes in and out here: its id, the checks, what is noted of it, the headers of its answer."""

import time
from collections.abc import Awaitable, Callable

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.app.auth import HEADERS, PAGE_POLICY
from serving.app.body import ClientGoneError
from serving.app.errors import Refusal, error_response, overloaded
from serving.app.request_context import RequestContext, request_id
from serving.app.state import AppState

POLICY = (b"content-security-policy", PAGE_POLICY.encode())
CLIENT_GONE = 499  # of the log alone, as nginx has it

Endpoint = Callable[[Request], Awaitable[Response]]

log = structlog.get_logger()


class RequestMiddleware:
    """ASGI middleware, the outermost one.

    Args:
        direct: endpoints by method and path that are called without the app's layers, which take as long as
            the rest of a small request.
        most: requests that may be here at a time; above, the answer is 503.

    Attributes:
        inside: how many are here now.
    """

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._direct: dict = {}
        self._security = state.security
        self._observer = state.telemetry
        self._bodies = state.bodies
        self._most = 2 * state.config.queue_limit
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # uvicorn leaves out the body
            scope = {**scope, "method": "GET"}
        headers = dict(scope["headers"])
        client = scope["client"][0] if scope["client"] else ""
        exchange = RequestContext(request_id(headers.get(b"x-request-id")), scope["path"], client)
        scope["context"] = exchange
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                has_policy = any(name == POLICY[0] for name, _ in message["headers"])
                message["headers"] = [
                    *message["headers"],
                    *HEADERS,
                    *([] if has_policy else [POLICY]),
                    (b"x-request-id", exchange.request_id.encode()),
                ]
            await send(message)

        self.inside += 1
        try:
            await self._answer(scope, receive, send_with_headers, headers, exchange)
        except ClientGoneError:
            status = CLIENT_GONE
        except Exception:
            log.exception("failed", request_id=exchange.request_id)
            if status:  # too late for another answer: the connection is cut
                raise
            exchange.error_code = "internal_error"
            failure = Refusal(500, "internal_error", "The server failed; its log says why.")
            await error_response(failure)(scope, receive, send_with_headers)
        finally:
            if (cycle := scope.get("cycle")) and cycle.disconnected:
                status = CLIENT_GONE
            self.inside -= 1
            self._bodies.held -= exchange.body_bytes
            self._observer.request_ended(exchange, status, time.perf_counter() - exchange.began)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        exchange: RequestContext,
    ) -> None:
        response: Response | None = None
        try:
            self._security.check(exchange.path, exchange.client, headers)
            if self.inside > self._most:
                raise overloaded()
            endpoint = self._direct.get((scope["method"], exchange.path))
            if endpoint is not None:
                response = await endpoint(Request(scope, receive))
        except Refusal as refusal:
            exchange.error_code = refusal.code
            response = error_response(refusal)
        if response is not None:
            await response(scope, receive, send)
        else:
            body = None

            async def bounded():
                nonlocal body
                if body is None:
                    body = await self._bodies.read(Request(scope, receive))
                    exchange.body_bytes = len(body)
                    return {"type": "http.request", "body": bytes(body), "more_body": False}
                return await receive()

            await self._app(scope, bounded, send)
