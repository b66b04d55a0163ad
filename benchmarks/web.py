"""Time of a web folder in headless Chromium: first answer after a warm load, and images per second live.

python -m benchmarks.web FOLDER
"""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from serving.web.server import create_server

ROUNDS = 5
LIVE_SECONDS = 5
PHOTO = Path(__file__).parents[1] / "serving" / "examples" / "cat.jpg"
ARGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


def first_answer(page: Page) -> float:
    """Reload the page and return the seconds until it shows the answer for a photo."""
    start = time.perf_counter()
    page.reload(wait_until="commit")
    page.set_input_files("#files", PHOTO)
    expect(page.locator("#timing")).to_contain_text("Answered")
    return time.perf_counter() - start


def main(folder: Path) -> None:
    """Measure and print."""
    server = create_server(folder, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path="/usr/bin/chromium", args=ARGS
        )
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        expect(page.locator("#offline")).to_be_visible(timeout=60_000)
        times = [first_answer(page) for _ in range(ROUNDS)]
        print(
            f"first answer after a warm load: median {statistics.median(times):.2f} s, max {max(times):.2f} s"
        )
        page.get_by_role("button", name="Live view").click()
        page.wait_for_timeout(1000 * LIVE_SECONDS)
        print(f"live: {page.locator('#rate').inner_text()}")
        context.close()
    server.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
