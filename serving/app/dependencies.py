"""Objects that the routes share: the state of the process and the context of the request.

Plain functions, because FastAPI's `Depends` takes as long as the rest of a small request.
"""

from starlette.requests import Request

from serving.app.request_context import RequestContext
from serving.app.state import AppState


def app_state(request: Request) -> AppState:
    state: AppState = request.app.state.app_state
    return state


def request_context(request: Request) -> RequestContext:
    context: RequestContext = request.scope["context"]
    return context
