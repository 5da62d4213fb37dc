"""What a person does on the page, and what holds of it at any time."""

import json
import os
from collections.abc import Iterator
from importlib.resources import files

from playwright.sync_api import Browser, Page

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WAIT = 30_000  # milliseconds
HOSTILE = "<img src=x onerror=hacked=1>"


def new_page(browser: Browser, width: int, locale: str = "en-US") -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 800}, locale=locale)
    context.set_default_timeout(WAIT)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
    yield page
    assert page.evaluate("typeof hacked") == "undefined"
    assert problems == []
    context.close()


def open_tool(page: Page, address: str, tool: str, model: str | None = None) -> None:
    page.goto(f"{address}#tool={tool}" + (f"&model={model}" if model else ""))
    page.wait_for_selector(f"#tab-{tool}[aria-selected=true]")


def run(page: Page) -> None:
    """Presses Run and waits for the result."""
    page.click("#run")
    finish(page)


def finish(page: Page) -> None:
    page.wait_for_selector("#result[aria-busy=false]")
    assert page.locator("#result [role=alert]").all_inner_texts() == []


def check(page: Page, name: str) -> None:
    """No horizontal scroll, and no finding of axe-core in light and in dark.

    With BERTGPT_SHOTS=DIR, pictures are left there.
    """
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    for theme in ("light", "dark"):
        page.select_option("#theme", theme)
        found = page.evaluate(f"axe.run({{runOnly: {json.dumps(WCAG)}, resultTypes: ['violations']}})")
        assert [(item["id"], item["nodes"][0]["html"]) for item in found["violations"]] == []
        if folder := os.environ.get("BERTGPT_SHOTS"):
            page.screenshot(path=f"{folder}/{name}_{width}_{theme}.png", full_page=True)
