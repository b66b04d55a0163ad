"""Write the web folder: page, examples, network, runtime, and the files that make it work offline."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from serving.web.runtime import FILES, Runtime

PAGE = Path(__file__).parents[1] / "page"
EXAMPLES = Path(__file__).parents[1] / "examples"
WEB_FILES = Path(__file__).parent / "files"  # laid over those of the served page
MODEL_FILE = "model/model.onnx"
CARD_FILE = "model/model.json"

# For the page, as its <meta> and as the header that docs/web.md recommends. WebAssembly is compiled by the
# worker only, whose policy comes from its own headers.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; media-src 'self' blob:; worker-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)
HEADER_POLICY = (
    PAGE_POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'")
    + "; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": HEADER_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self)",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_HEAD = f"""
    <meta http-equiv="Content-Security-Policy" content="{PAGE_POLICY}">
    <meta name="theme-color" content="#0f6b66">
    <link rel="manifest" href="manifest.webmanifest">
    <link rel="apple-touch-icon" href="icon-full-512.png">"""
_FOOTER = """
      <p>Photos stay on this device.<span id="offline" hidden> The page works offline.</span></p>"""
_SERVER_ONLY = re.compile(r"\s*<!-- server -->.*?<!-- /server -->", re.DOTALL)
_SERVER_ONLY_FILES = ("index.html", "api-key.js", "convert.js", "model-card.js")


def write_bundle(folder: Path, network: bytes, card: dict[str, Any], runtime: Runtime) -> None:
    """Write all files into `folder`, which is created.

    Args:
        network: ONNX from `image`, uint8 (H, W, 3), to `logits`, float32 (1, classes), and `input`, the uint8
            (1, S, S, 3) that the network receives.
        card: facts and thresholds of the model for the page, see `Model` in files/page/classifier.js.

    Raises:
        OSError: a file cannot be written.
    """
    shutil.copytree(PAGE, folder / "page")
    shutil.copytree(EXAMPLES, folder / "page" / "examples")
    shutil.copytree(WEB_FILES, folder, dirs_exist_ok=True)
    for name in _SERVER_ONLY_FILES:
        (folder / "page" / name).unlink()
    (folder / "index.html").write_text(_page())
    for name in FILES:
        shutil.copy(runtime.folder / name, folder / "runtime")
    (folder / "model").mkdir()
    (folder / MODEL_FILE).write_bytes(network)
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False))
    (folder / "files.js").write_text(_file_list(folder))


def sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file in bytes by its path in the folder, the largest first."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    return dict(sorted(files.items(), key=lambda item: -item[1]))


def _page() -> str:
    """Return index.html of the served page without the parts that need a server."""
    page = _SERVER_ONLY.sub("", (PAGE / "index.html").read_text())
    for mark, addition in (('<meta charset="utf-8">', _HEAD), ('<p id="about"></p>', _FOOTER)):
        before, found, after = page.partition(mark)
        if not found:
            raise RuntimeError(f"index.html has no {mark}")
        page = before + found + addition + after
    return page


def _file_list(folder: Path) -> str:
    """Return files.js: the files that the service worker keeps, with the digests that it checks."""
    files = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name == "service-worker.js":  # the browser keeps it itself
            continue
        digest = base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        # Hosts may redirect index.html to its folder, and a redirected answer cannot be served as a page.
        files["./" if name == "index.html" else name] = f"sha256-{digest}"
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    content = {"version": version, "policy": HEADER_POLICY, "files": files}
    return f"self.BUNDLE = {json.dumps(content, indent=2)};\n"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
