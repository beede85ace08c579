"""A headless Chromium for tests that look at a page as a reader does."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, ConsoleMessage, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
LIGHT: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
DARK = LIGHT | {"color_scheme": "dark"}
PHONE = LIGHT | {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@dataclass
class Opened:
    """A page from disk, and all it did that a report must not do."""

    page: Page
    url: str
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def elsewhere(self) -> list[str]:
        """Whatever was asked for but the page itself."""
        return [url for url in self.requested if url.partition("#")[0] != self.url]

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@contextmanager
def browsing() -> Iterator[Browser]:
    """The installed browser; the test is skipped where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, part: str = "", **kind: Any) -> Iterator[Opened]:
    """The file at `path`, opened from disk at `#part`, in a window of one `kind`."""
    context = browser.new_context(**(LIGHT | kind))
    context.set_default_timeout(10_000)
    page = context.new_page()
    seen = Opened(page, path.as_uri())
    page.on("request", lambda request: seen.requested.append(request.url))
    page.on("console", seen._hear)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.goto(path.as_uri() + part)
    yield seen
    context.close()
