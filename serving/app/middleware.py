"""Middleware around every request: ids, limits, access control, telemetry, and common headers."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.app.admission import Slot
from serving.app.errors import Refusal, error_response, overloaded
from serving.app.request_body import ClientGoneError, RequestBody
from serving.app.request_context import (
    LIVE_HEADER,
    LOGGED_ROUTES,
    RequestContext,
    new_request_id,
    parse_client_id,
    route_of,
)
from serving.app.state import AppState

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self)"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
PAGE_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    b"connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
)
LIVE_FIELD = LIVE_HEADER.lower().encode()
CLIENT_GONE = 499  # only in logs and metrics, as in those of nginx
# The HTTP server ignores the upgrade but does not parse the body: it would be taken for the next request.
UPGRADE_WITH_BODY = Refusal(
    400, "upgrade_with_body", "A request with an Upgrade header has no body.", {"Connection": "close"}
)
OVERLOADED = error_response(overloaded())

log = structlog.get_logger()


class RequestMiddleware:
    """ASGI middleware around all routes.

    Routes find their `RequestContext` in `scope["context"]`. Receiving a body raises `Refusal` or
    `ClientGoneError`, see `RequestBody`.
    """

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = route_of(scope["path"].removeprefix(scope.get("root_path", ""))), _headers(scope)
        client = scope["client"][0] if scope["client"] else ""
        client_id = parse_client_id(headers.get(b"x-request-id"))
        live = path in LOGGED_ROUTES and headers.get(LIVE_FIELD) == b"1"
        context = RequestContext(new_request_id(), path, client, client_id, live)
        body = RequestBody(receive, headers, self._state.body_limits)
        admission = self._state.admission
        if admission.is_full(path, body.is_pending):
            self._state.telemetry.turned_away(context)
            await OVERLOADED(scope, body, _Response(send, body, context, None))
            return
        slot = admission.enter(path, body.is_pending)
        body.on_arrival = slot.body_has_arrived
        response = _Response(send, body, context, slot)
        if scope["method"] == "HEAD":  # the HTTP server leaves out the body
            scope = {**scope, "method": "GET"}
        scope["context"] = context
        try:
            if b"upgrade" in headers and body.is_pending:
                raise UPGRADE_WITH_BODY
            self._state.access.check(path, client, headers)
            await self._app(scope, body, response)
        except ClientGoneError:
            response.status = CLIENT_GONE
        except Refusal as refusal:
            context.error_code = refusal.code
            await error_response(refusal)(scope, body, response)
        except Exception:
            log.exception("failed", request_id=context.request_id)
            if response.status:  # too late for another answer: the HTTP server closes the connection
                raise
            context.error_code = "internal_error"
            failure = Refusal(500, "internal_error", "The server failed; its log says why.")
            await error_response(failure)(scope, body, response)
        finally:
            body.release()
            slot.leave()
            seconds = time.perf_counter() - context.started
            self._state.telemetry.request_ended(context, response.status, seconds)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers; the values of one that was sent several times are joined, as RFC 9110 says."""
    headers = dict(scope["headers"])
    if len(headers) < len(scope["headers"]):
        for name in headers:
            headers[name] = b", ".join(value for each, value in scope["headers"] if each == name)
    return headers


class _Response:
    """The ASGI `send` of one request: adds headers, and makes sure that an early answer reaches the client.

    Attributes:
        status: of the answer, 0 before there is one.
    """

    def __init__(self, send: Send, body: RequestBody, context: RequestContext, slot: Slot | None) -> None:
        self._send = send
        self._body = body
        self._context = context
        self._slot = slot
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            is_gone = self._body.poll()
            self.status = CLIENT_GONE if is_gone else message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers()]
        elif self._body.is_pending and not message.get("more_body", False):
            # The client has all of the answer before the rest of its body is read. The connection may only be
            # closed after that, which the HTTP server does when it is told that the answer is complete.
            await self._send({**message, "more_body": True})
            if self._slot is not None:
                self._slot.leave()
            await self._body.discard()
            message = {"type": "http.response.body"}
        await self._send(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        context = self._context
        headers = [
            *SECURITY_HEADERS,
            PAGE_POLICY,
            (b"x-request-id", (context.client_id or context.request_id).encode()),
        ]
        if context.client_id is not None and context.path in LOGGED_ROUTES:
            headers.append((b"x-feedback-id", context.request_id.encode()))
        if self._body.is_pending:
            headers.append((b"connection", b"close"))
        return headers
