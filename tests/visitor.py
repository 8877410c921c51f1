"""Whoever visits the page in a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


class Visitor:
    """A page, and everything that went wrong on it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(60_000)

    def go(self, route: str = "#/") -> Page:
        # A hash alone would not load the page again.
        self.page.goto("about:blank")
        self.page.goto(self.address + route)
        self.page.wait_for_selector("#app:not([hidden]) main > *")
        return self.page

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def labels(self, count: int = 10_000) -> list[int]:
        """Channels of the cells of the grid, in order of place."""
        found = self.page.locator(".grid a.cell").evaluate_all("all => all.map((a) => [a.index, a.unit.channel])")
        return [channel for _, channel in sorted(found)][:count]
