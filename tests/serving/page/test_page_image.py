"""The tool for pictures as a person uses it: choosing, dropping, pasting; captions, answers, labels."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from .browsing import check, finish, open_tool, run

pytestmark = pytest.mark.slow

CARD = {"object": "model", "architecture": "decoder", "max_len": 48, "labels": [], "mask": None}
LABELS = {f"label {i}": 0.5**i for i in range(1, 15)}


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), noise: bool = False) -> bytes:
    """An encoded picture."""
    image = Image.effect_noise(size, 100).convert("RGB") if noise else Image.new("RGB", size, "green")
    image.save(stream := io.BytesIO(), kind)
    return stream.getvalue()


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def pretend(page: Page, *capabilities: str) -> list[tuple[str, dict]]:
    """A server of one model that can do these; the calls it gets."""
    calls: list[tuple[str, dict]] = []

    def answer(route: Route) -> None:
        path, body = route.request.url.rpartition("/")[2], route.request.post_data_json
        calls.append((path, body))
        result = {
            "caption": {"text": "a green square"},
            "vqa": {"answer": "green"},
            "classify-image": {"label": "label 1", "probabilities": LABELS},
            "zero-shot-image": {"label": "b", "probabilities": {"a": 0.25, "b": 0.75}},
        }[path]
        route.fulfill(json={"model": "sees", "results": [result]})

    card = CARD | {"id": "sees", "capabilities": list(capabilities)}
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [card]}))
    for path in ("caption", "vqa", "classify-image", "zero-shot-image"):
        page.route(f"**/{path}", answer)
    return calls


def transfer(page: Page, content: bytes, name: str, kind: str, event: str, target: str) -> None:
    """Drops or pastes a file."""
    page.evaluate(
        """([data, name, type, event, target]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, {type}));
          const made = event === 'paste' ? new ClipboardEvent(event, {clipboardData: transfer, bubbles: true})
            : new DragEvent(event, {dataTransfer: transfer, bubbles: true, cancelable: true});
          document.querySelector(target).dispatchEvent(made);
        }""",
        [base64.b64encode(content).decode(), name, kind, event, target],
    )


def test_a_picture_is_chosen_and_described_or_asked_about(page: Page, address: str):
    calls = pretend(page, "caption", "vqa")
    open_tool(page, address, "image")
    content = picture()
    page.get_by_label("Picture", exact=True).last.set_input_files(
        {"name": "green.png", "mimeType": "image/png", "buffer": content}
    )
    expect(page.get_by_alt_text("Preview of green.png")).to_have_js_property("naturalWidth", 40)
    page.get_by_label("Question or statement").fill("")
    run(page)
    expect(page.locator("#result .quote")).to_have_text("a green square")
    page.get_by_label("Question or statement").fill("Which colour?")
    run(page)
    expect(page.locator("#result .verdict")).to_have_text("green")
    assert calls == [
        ("caption", {"model": "sees", "inputs": uri(content)}),
        ("vqa", {"model": "sees", "image": uri(content), "question": "Which colour?"}),
    ]
    page.get_by_label("Model").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "file"
    check(page, "image")


def test_pictures_are_dropped_and_pasted_and_labels_become_bars(page: Page, address: str):
    calls = pretend(page, "classify_image")
    open_tool(page, address, "image")
    dropped, pasted = picture("JPEG"), picture("WEBP", (20, 20))
    transfer(page, dropped, "a.jpg", "image/jpeg", "drop", ".drop")
    expect(page.locator(".drop .note[role=status]")).to_have_text("a.jpg")
    run(page)
    expect(page.locator("#result .verdict")).to_have_text("label 1")
    expect(page.locator("#result .bars li")).to_have_count(10)
    expect(page.locator("#result .note")).to_have_text("4 further labels are less probable.")
    transfer(page, pasted, "b.webp", "image/webp", "paste", "body")
    expect(page.get_by_alt_text("Preview of b.webp")).to_be_visible()
    run(page)
    assert calls == [
        ("classify-image", {"model": "sees", "inputs": uri(dropped, "jpeg")}),
        ("classify-image", {"model": "sees", "inputs": uri(pasted, "webp")}),
    ]
    transfer(page, b"hello", "notes.txt", "text/plain", "drop", ".drop")
    expect(page.locator(".drop .wrong")).to_have_text("notes.txt is no PNG, JPEG, GIF or WebP file.")
    transfer(page, b"hello", "fake.png", "image/png", "drop", ".drop")
    expect(page.locator(".drop .wrong")).to_have_text("fake.png cannot be read as a picture.")
    check(page, "image_labels")


def test_labels_can_be_given(wide: Page, address: str):
    calls = pretend(wide, "zero_shot_image")
    open_tool(wide, address, "image")
    wide.get_by_label("Labels").fill("a， b")
    wide.locator("button.example").first.focus()
    run(wide)
    expect(wide.locator("#result .bars .name")).to_have_text(["b", "a"])
    assert calls[0][0] == "zero-shot-image" and calls[0][1]["labels"] == ["a", "b"]
    drawn = base64.b64decode(calls[0][1]["inputs"].partition(",")[2])
    assert Image.open(io.BytesIO(drawn)).size == (128, 128)
    wide.get_by_label("Labels").fill("")
    wide.click("#run")
    assert len(calls) == 1  # the browser asks for labels first


def test_a_picture_that_is_too_large_becomes_smaller_and_says_so(wide: Page, address: str):
    calls = pretend(wide, "caption")
    open_tool(wide, address, "image")
    content = picture("PNG", (2000, 1000), noise=True)
    content += b"\0" * max(0, 3_000_001 - len(content))
    wide.locator("input[type=file]").set_input_files({"name": "big.png", "mimeType": "image/png", "buffer": content})
    said = "big.jpg · scaled to 1600 × 800, because it has more than 3 MB"
    expect(wide.locator(".drop .note[role=status]")).to_have_text(said)
    run(wide)
    sent = base64.b64decode(calls[0][1]["inputs"].partition(",")[2])
    image = Image.open(io.BytesIO(sent))
    assert (image.format, image.size) == ("JPEG", (1600, 800)) and len(sent) < 3_000_000


def test_the_code_that_is_shown_reads_the_picture_from_its_file(wide: Page, address: str, tmp_path: Path):
    pretend(wide, "vqa")
    open_tool(wide, address, "image")
    content, name = picture(size=(9, 9)), 'it\'s "mine".png'
    (tmp_path / name).write_bytes(content)
    wide.locator("input[type=file]").set_input_files(tmp_path / name)
    question = 'It\'s a "cat" \\ 猫 {file} picture'
    wide.get_by_label("Question or statement").fill(question)
    expect(wide.locator(".drop .note[role=status]")).to_have_text(name)
    sent = {"model": "sees", "image": uri(content), "question": question}
    (tmp_path / "requests.py").write_text(
        "import json, types\n"
        "def post(url, json=None, timeout=None):\n"
        "    return types.SimpleNamespace(raise_for_status=lambda: None, json=lambda: __import__('json').dumps(json))\n"
    )
    (tmp_path / "curl").write_text("#!/bin/sh\ncat\n")
    (tmp_path / "curl").chmod(0o755)
    for kind, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        wide.get_by_text(kind, exact=True).click()
        code = wide.locator("#code").inner_text()
        assert len(code) < 700
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [*command, code], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == sent


def test_the_tool_is_chinese_too(wide: Page, address: str):
    pretend(wide, "caption", "vqa")
    open_tool(wide, address, "image")
    wide.select_option("#language", "zh")
    finish(wide)
    assert wide.get_by_role("tab", selected=True).inner_text() == "图像"
    assert "可选择文件" in wide.locator(".drop").inner_text()
