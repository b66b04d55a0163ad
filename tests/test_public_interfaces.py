"""Product code uses only public interfaces of other packages: private ones change without notice."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("cifar_mlflow", "tuning", "serving", "benchmarks")
PACKAGES = {"mlflow", "optuna", "uvicorn", "starlette", "fastapi", "click", "torch"}
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public, in spite of the underscore
# "file: name" -> reason. Empty, and meant to stay so.
EXCEPTIONS: dict[str, str] = {}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_uses(source: str) -> Iterator[str]:
    """Yield the private names of other packages, and of objects that are not the module's own, in `source`.

    An attribute `_x` counts unless it is `self._x` or `cls._x`, or some class or function of the same file
    defines `_x`: a type checker would be needed to follow objects further.
    """
    tree = ast.parse(source)
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    }
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if any(map(is_private, names)):
                yield f"{node.module}.{node.names[0].name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] in PACKAGES and any(map(is_private, parts)):
                    yield alias.name
        elif isinstance(node, ast.Attribute):
            if is_private(node.attr) and node.attr not in own | NAMED_TUPLE:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield ast.unparse(node)


def test_product_code_uses_no_private_names_of_other_packages() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for package in PRODUCT
        for path in (ROOT / package).rglob("*.py")
        for name in private_uses(path.read_text())
    }
    assert not found - EXCEPTIONS.keys(), "\n".join(sorted(found - EXCEPTIONS.keys()))
    assert not EXCEPTIONS.keys() - found, "these exceptions are no longer needed"


@pytest.mark.parametrize(
    "source",
    [
        "from mlflow.pyfunc import _log_model",
        "from torch._dynamo import config",
        "import torch._inductor.config",
        "trial._trial_id",
        "mlflow.pyfunc.scoring_server._parse_json_data(x)",
        "getattr(server, '_serve')",
        "class A(Server):\n    def run(self): return other._tick()",
    ],
)
def test_a_private_use_is_found(source: str) -> None:
    assert list(private_uses(source))


@pytest.mark.parametrize(
    "source",
    [
        "from cifar_mlflow.options import _option",
        "class A:\n    def f(self, other): self._x = 1; return other._x",
        "import torch\ntorch.__version__",
        "def _f(): pass\n_f()",
        "from torch.onnx import export",
    ],
)
def test_a_public_use_is_not_reported(source: str) -> None:
    assert not list(private_uses(source))
