"""The commit that a run is tagged with."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from cifar_mlflow import environment


def test_changed_documents_do_not_make_the_code_of_a_run_modified(tmp_path: Path) -> None:
    """`python -m benchmarks record` adds to a file in the repository between trainings of the same code."""
    module, page = tmp_path / "package" / "environment.py", tmp_path / "README.md"
    module.parent.mkdir()
    assert environment.__file__ is not None
    module.write_text(Path(environment.__file__).read_text())
    page.write_text("one\n")
    for command in (
        "git init -q",
        "git add -A",
        "git -c user.name=a -c user.email=a@b.c commit -qm first",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    spec = importlib.util.spec_from_file_location("environment_of_a_copy", module)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)

    page.write_text("two\n")
    assert copy.git_state()["git.dirty"] == "false"
    module.write_text(module.read_text() + "# changed\n")
    assert copy.git_state()["git.dirty"] == "true"


@pytest.mark.parametrize(
    ("remote", "page"),
    [
        ("git@github.com:someone/cifar.git", "https://github.com/someone/cifar"),
        ("https://user:secret@gitlab.example.org:8443/a/b.git", "https://gitlab.example.org:8443/a/b"),
        ("ssh://git@git.example.org:2222/a/b", "https://git.example.org/a/b"),
        ("/srv/cifar.git", None),
        ("", None),
    ],
)
def test_the_page_of_a_remote_has_no_password(remote: str, page: str | None) -> None:
    assert environment.web_address(remote) == page
