"""Chromium, and the real application with tiny models behind a socket. Skipped without Playwright or Chromium."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, sync_playwright
from serving_models import live

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.serving.app import build_app
from bertgpt.serving.limits import Limits
from bertgpt.serving.served import Served

from .browsing import new_page
from .models import make_reader, make_tagger

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def models(served: dict[str, Served], tokenizer: Tokenizer, tokenizer_dir: Path) -> list[Served]:
    """One model for each kind of tool."""
    known = {name: served[name].model for name in ("bert", "gpt", "t5", "classes")}
    runs = {"tagger": make_tagger(tokenizer, tokenizer_dir), "reader": make_reader(tokenizer, tokenizer_dir)}
    return [Served(name, model) for name, model in (known | runs).items()]


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Starts a server of these models on a free port and returns its address."""
    with contextlib.ExitStack() as servers:
        limits = Limits(max_new_tokens=200)
        yield lambda models, **options: servers.enter_context(live(build_app(models, limits, **options), limits)) + "/"


@pytest.fixture(scope="session")
def address(serve: Callable[..., str], models: list[Served]) -> str:
    return serve(models)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole session: while Playwright runs, its event loop is that of the thread, and others cannot run."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 360])
def width(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def page(browser: Browser, width: int) -> Iterator[Page]:
    """A page at one of the two widths that fails the test if a script fails or the policy blocks something."""
    yield from new_page(browser, width)


@pytest.fixture
def wide(browser: Browser) -> Iterator[Page]:
    yield from new_page(browser, 1280)
