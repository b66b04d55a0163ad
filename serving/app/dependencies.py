"""What the routes share: the state of the process, and the context of the request."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from serving.app.request_context import RequestContext
from serving.app.state import AppState


async def _app_state(request: Request) -> AppState:
    state: AppState = request.app.state.service
    return state


async def _request_context(request: Request) -> RequestContext:
    context: RequestContext = request.scope["context"]
    return context


State = Annotated[AppState, Depends(_app_state)]
Context = Annotated[RequestContext, Depends(_request_context)]
