"""The documentation names everything that a user can type, call or read."""

import re
import runpy
import tomllib
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


# Set by launchers, by the desktop or by this project itself, not by a user.
INTERNAL = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_MAX_RESTARTS", "MLFLOW_RUN_ID", "PYSPARK_GATEWAY_PORT"),
    *("PATH", "HOME", "DISPLAY", "WAYLAND_DISPLAY", "PROMETHEUS_MULTIPROC_DIR", "KERAS_BACKEND"),
    *("CIFAR_MLFLOW_WORKER_CONFIG", "CIFAR_MLFLOW_COMPLETE"),
}
READ = re.compile(
    r"""environ(?:ment)?(?:\.get\(|\[)"([A-Z][A-Z0-9_]+)"|"([A-Z][A-Z0-9_]+)" (?:not )?in os\.environ"""
)


def test_every_environment_variable_is_listed() -> None:
    files = [path for name in ("cifar_mlflow", "tuning", "serving") for path in (ROOT / name).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    read = {name for pair in READ.findall(code) for name in pair if name}
    launchers = "\n".join(path.read_text() for path in (ROOT / "deploy/search").iterdir())
    ours = set(re.findall(r"\bCIFAR_MLFLOW_[A-Z_]*[A-Z]\b|\bCIFAR10_DIR\b", code + launchers))
    ours |= set(re.findall(r"\bSTUDY_[A-Z]+\b", launchers))
    listed = set(runpy.run_path(str(ROOT / "docs/generate.py"))["VARIABLES"])
    assert listed >= (read | ours) - INTERNAL
    assert not [name for name in listed if name not in code + launchers]


def test_commands_that_install_an_extra_work_as_no_index_has_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in PAGES:
        for place, names in re.findall(
            r"pip install [^\n`]*?'([^'\n`]*)\[([a-z,]+)\]'", page.read_text(encoding="utf-8")
        ):
            if place != "tritonclient":
                assert place.endswith((".", "/path/to/cifar_mlflow", ".whl")), (
                    f"{page.name}: {place}[{names}]"
                )
                assert set(names.split(",")) <= project["optional-dependencies"].keys(), (
                    f"{page.name}: {names}"
                )
