"""The playground around its tools: keyboard, languages, colours, errors, the token, the code that it shows."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from bertgpt.serving.served import Served

from .browsing import HOSTILE, finish, new_page, open_tool, run

pytestmark = pytest.mark.slow


def test_tabs_work_by_keyboard_and_the_address_says_what_is_shown(page: Page, address: str):
    page.goto(address)
    tabs = page.get_by_role("tab")
    names = tabs.all_inner_texts()
    assert names[0] == "Fill-mask" and names[-1] == "Tokenizer" and len(names) == 12
    tabs.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tabs.nth(1)).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_have_attribute("aria-labelledby", "tab-classify")
    page.keyboard.press("End")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Tokenizer")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Fill-mask")
    page.keyboard.press("End")
    page.get_by_label("Model").select_option("gpt")
    assert page.url.endswith("#tool=tokenize&model=gpt")
    page.reload()
    expect(page.get_by_label("Model")).to_have_value("gpt")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Tokenizer")
    page.evaluate("location.hash = '#tool=lens&model=bert'")
    expect(page.get_by_role("heading", level=2)).to_have_text("Logit lens")
    assert page.get_by_role("tab").evaluate_all("tabs => tabs.filter(tab => tab.tabIndex === 0).length") == 1


def test_each_example_runs_with_one_click_and_the_result_stays_when_tools_change(wide: Page, address: str):
    open_tool(wide, address, "tokenize", "bert")
    for example in range(wide.locator("button.example").count()):
        wide.locator("button.example").nth(example).click()
        finish(wide)
        assert wide.locator("#result tbody tr").count() > 2
    kept = wide.locator("#result").inner_text()
    wide.get_by_role("tab", name="Fill-mask").click()
    assert "Press Run" in wide.locator("#result").inner_text()
    wide.get_by_role("tab", name="Tokenizer").click()
    assert wide.locator("#result").inner_text() == kept


@pytest.mark.parametrize(("locale", "code"), [("zh-CN", "zh-Hans"), ("en-GB", "en"), ("fr-FR", "en")])
def test_the_language_is_the_browsers_until_it_is_switched(browser: Browser, address: str, locale: str, code: str):
    for page in new_page(browser, 360, locale):
        page.goto(address)
        page.wait_for_selector("[role=tab]")
        assert page.evaluate("document.documentElement.lang") == code
        other = {"zh-Hans": ("en", "en", "Run"), "en": ("zh", "zh-Hans", "运行")}[code]
        page.select_option("#language", other[0])
        expect(page.locator("#run")).to_have_text(other[2])
        assert page.evaluate("document.documentElement.lang") == other[1]
        for tool in page.get_by_role("tab").all():
            tool.click()
            shown = page.locator("body").inner_text()
            assert "undefined" not in shown and not re.search(r"\{\w+\}", shown)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.reload()
        expect(page.locator("#run")).to_have_text(other[2])


def test_colours_follow_the_system_and_the_switch_and_motion_can_be_reduced(wide: Page, address: str):
    def background() -> str:
        return wide.evaluate("getComputedStyle(document.body).backgroundColor")

    wide.goto(address)
    wide.wait_for_selector("[role=tab]")
    wide.emulate_media(color_scheme="light")
    light = background()
    wide.emulate_media(color_scheme="dark", reduced_motion="reduce")
    dark = background()
    assert light != dark
    wide.select_option("#theme", "light")
    assert background() == light
    wide.reload()
    wide.wait_for_selector("[role=tab]")
    assert background() == light
    wide.route("**/fill-mask", lambda route: None)  # never answered
    wide.click("#run")
    assert wide.locator(".waiting i").first.evaluate("dot => getComputedStyle(dot).animationName") == "none"
    wide.click("#run")


def test_what_models_and_servers_say_is_never_read_as_html(wide: Page, address: str):
    token = {"token": HOSTILE, "text": HOSTILE, "id": 1, "probability": 0.5}
    wide.route(
        "**/fill-mask", lambda route: route.fulfill(json={"results": [[{"start": 0, "end": 6, "tokens": [token]}]]})
    )
    open_tool(wide, address, "fill_mask", "bert")
    wide.get_by_label("Text", exact=True).fill(f"[MASK] {HOSTILE}")
    run(wide)
    assert (
        wide.locator("#result").inner_text().count(HOSTILE) == 2
        and HOSTILE.replace(" ", "␣") in wide.locator("#result").inner_text()
    )
    wide.route("**/tokenize", lambda route: route.fulfill(status=422, json={"error": {"message": HOSTILE}}))
    open_tool(wide, address, "tokenize", "bert")
    wide.click("#run")
    expect(wide.locator("#result .error")).to_contain_text(HOSTILE)
    assert wide.locator("img").count() == 1  # the logo


def answer(status: int, headers: dict[str, str] | None = None, body: str = "{}") -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, headers=headers or {}, body=body)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (answer(429, {"Retry-After": "7"}), "The server is busy. Try again in 7 s."),
        (answer(429), "The server is busy. Try again later."),
        (answer(500, body='{"error": {"message": "a fault"}}'), "The server failed (500). a fault"),
        (answer(502, body="<html>"), "The server failed (502)."),
        (answer(413), "The server refused the request (413)."),
        (answer(200, body="not JSON"), "The server's answer is not JSON."),
        (answer(200, body='{"results": [[{}]]}'), "The page cannot show this answer"),
        (lambda route: route.abort(), "The server cannot be reached."),
    ],
)
def test_errors_are_said_in_words(wide: Page, address: str, reply: Callable[[Route], None], said: str):
    wide.route("**/fill-mask", reply)
    open_tool(wide, address, "fill_mask", "bert")
    wide.click("#run")
    expect(wide.locator("#result .error")).to_contain_text(said)
    expect(wide.locator("#run")).to_have_text("Run")
    if "refused" not in said and "show" not in said:
        wide.unroute("**/fill-mask")
        wide.get_by_role("button", name="Try again").click()
        finish(wide)
        assert wide.locator("#result .bars").count() > 0


def test_the_servers_own_sentence_is_shown(wide: Page, address: str):
    open_tool(wide, address, "similarity")
    wide.get_by_label("Sentences, one per line").fill("only one")
    wide.click("#run")
    expect(wide.locator("#result .error")).to_have_text("Write at least two lines.")
    open_tool(wide, address, "generate", "gpt")
    wide.get_by_label("New tokens").fill("4000")
    wide.click("#run")
    expect(wide.locator("#result .error")).to_contain_text("4000")


def test_invalid_settings_are_not_sent(wide: Page, address: str):
    sent = []
    wide.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    open_tool(wide, address, "fill_mask", "bert")
    number = wide.get_by_label("Candidates per mask")
    for value in ("", "0", "1000"):
        number.fill(value)
        wide.click("#run")
        number.press("Control+Enter")
        assert number.evaluate("input => !input.checkValidity()")
    assert sent == [] and "Press Run" in wide.locator("#result").inner_text()


def test_a_server_that_is_gone_at_the_start_can_be_tried_again(wide: Page, address: str):
    wide.route("**/v1/models", lambda route: route.abort())
    wide.goto(address)
    expect(wide.locator("#panel .error")).to_contain_text("The server cannot be reached.")
    wide.unroute("**/v1/models")
    wide.get_by_role("button", name="Try again").click()
    expect(wide.get_by_role("tab").first).to_be_visible()


def test_a_token_is_asked_for_used_and_kept_nowhere(wide: Page, serve: Callable[..., str], served: dict[str, Served]):
    address = serve([Served("bert", served["bert"].model)], api_key="correct horse")
    wide.goto(address)
    token = wide.get_by_label("Bearer token")
    expect(wide.locator("#panel .error")).to_contain_text("asks for a bearer token")
    token.fill("wrong")
    token.press("Enter")
    expect(wide.locator("#panel .error")).to_contain_text("does not accept")
    wide.get_by_label("Bearer token").fill("correct horse")
    wide.get_by_role("button", name="Use token").click()
    wide.get_by_role("tab", name="Tokenizer").click()
    run(wide)
    assert wide.locator("#result tbody tr").count() > 2
    kept = wide.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert "horse" not in kept + wide.content() and "BERTGPT_TOKEN" in wide.locator("#code").inner_text()
    wide.reload()
    expect(wide.get_by_label("Bearer token")).to_have_value("")


def test_the_code_that_is_shown_makes_the_call(wide: Page, address: str):
    wide.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_tool(wide, address, "fill_mask", "bert")
    wide.get_by_label("Text", exact=True).fill('It\'s the "cat" \\ of [MASK] 猫.')
    run(wide)
    best = wide.locator("#result .bars .name").first.inner_text()
    wide.get_by_role("button", name="Copy").click()
    expect(wide.get_by_role("button", name="Copied")).to_be_visible()
    for kind, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        wide.get_by_text(kind, exact=True).click()
        program = wide.locator("#code").inner_text()
        if kind == "curl":
            assert wide.evaluate("navigator.clipboard.readText()") == program
        done = subprocess.run([*command, program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert f"'token': '{best}'" in done.stdout or f'"token":"{best}"' in done.stdout
    pytest.importorskip("openai")
    open_tool(wide, address, "generate", "gpt")
    wide.get_by_label("New tokens").fill("5")
    wide.get_by_label("Temperature").fill("0")
    run(wide)
    text = "".join(
        wide.locator("#result [role=option]").evaluate_all("tokens => tokens.map(token => token.textContent)")
    )
    program = wide.locator("#code").text_content()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, text), done.stderr
