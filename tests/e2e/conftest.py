"""A browser for the tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests import browser
from tests.visitor import Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if browser.executable() is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell")
    with browser.chromium() as running:
        yield running


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visitor]]:
    """Visits any address; ``options`` are a browser context's."""
    contexts = []

    def visit(address: str, **options: Any) -> Visitor:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1200, "height": 800}, **options}))
        return Visitor(contexts[-1].new_page(), address)

    yield visit
    for context in contexts:
        context.close()
