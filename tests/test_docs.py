"""The documentation names everything that a user can type, call or read."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
]
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


@pytest.mark.parametrize(("file", "function"), [("reference.md", "page"), ("training.md", "training_page")])
def test_a_generated_page_matches_the_code(file: str, function: str) -> None:
    generated = runpy.run_path(str(ROOT / "docs/generate.py"))[function]()
    assert (ROOT / "docs" / file).read_text(encoding="utf-8") == generated, "run `make docs`"


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for file, anchor in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_every_file_that_the_architecture_names_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = page.partition("## Where do I put ...")[2].partition("\n## ")[0]
    for row in table.splitlines():
        folder = ROOT / "cifar_mlflow"
        for name in re.findall(r"`([\w./-]+/|[\w./-]+\.(?:py|md|ya?ml|json|js|html|conf))`", row):
            # A file without a folder is in the folder before it; a bare config.py is that of the training.
            bare = ROOT / "cifar_mlflow" if name in ("config.py", "cli.py") else folder
            path = ROOT / name if "/" in name and (ROOT / name).exists() else bare / name
            assert path.exists(), f"{name} in: {row}"
            folder = path if path.is_dir() else path.parent
