"""The web page: / and its files below /page."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

PAGE = Path(__file__).parents[2] / "page"
EXAMPLES = Path(__file__).parents[2] / "examples"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(PAGE / "index.html")


router.mount("/page/examples", StaticFiles(directory=EXAMPLES))
router.mount("/page", StaticFiles(directory=PAGE))
