"""One browser for the tests of both pages: Playwright allows one per process."""

from tests.serving.browser import browser, open_page

__all__ = ["browser", "open_page"]
