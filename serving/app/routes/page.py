"""The web page: / and its files below /page."""

import os
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGE = Path(__file__).parents[2] / "page"
EXAMPLES = Path(__file__).parents[2] / "examples"
# Browsers ask each time whether a file has changed: files of two releases do not fit together.
NO_CACHE = {"Cache-Control": "no-cache"}

router = APIRouter(include_in_schema=False)


class _PageFiles(StaticFiles):
    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(NO_CACHE)
        return response


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(PAGE / "index.html", headers=NO_CACHE)


router.mount("/page/examples", _PageFiles(directory=EXAMPLES))
router.mount("/page", _PageFiles(directory=PAGE))
