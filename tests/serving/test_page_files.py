"""The playground's files: how they are served, and what can be read off them without a browser."""

import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from bertgpt.serving.app import build_app
from bertgpt.serving.page import FILES
from bertgpt.serving.served import Served

MODULES = sorted(FILES.glob("*.js"))


@pytest.fixture(scope="module")
def guarded(served: dict[str, Served]) -> TestClient:
    """A client of a server that wants a token; the client has none."""
    return TestClient(build_app([served["bert"]], api_key="secret"), raise_server_exceptions=False)


def test_the_page_and_its_files_need_no_token_but_the_api_does(guarded: TestClient):
    names = {path.name for path in FILES.iterdir()}
    assert {"index.html", "style.css", "icon.svg", "app.js"} <= names
    for path in ("/", *(f"/static/{name}" for name in names)):
        answer = guarded.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'self'" in answer.headers["content-security-policy"], path
        assert "unsafe" not in answer.headers["content-security-policy"], path
        assert answer.headers["cache-control"] == "no-cache", path
    assert "javascript" in guarded.get("/static/app.js").headers["content-type"]
    assert guarded.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fconfig.py", "/static/"]
)
def test_nothing_but_the_files_of_the_folder_is_served(guarded: TestClient, path: str):
    assert guarded.get(path).status_code in (401, 404)


def test_the_page_has_no_inline_script_or_style_and_asks_no_other_host():
    found = []

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend(name for name, value in attrs if name == "style" or name.startswith("on"))
            found.extend(value for _, value in attrs if value and "//" in value)
            found.extend([tag] if tag == "style" or (tag == "script" and "src" not in dict(attrs)) else [])

    Check().feed((FILES / "index.html").read_text())
    assert found == []
    for path in MODULES:
        text = path.read_text()
        assert not re.search(r"(inner|outer|insertAdjacent)HTML|document\.write|\beval\(|new Function", text), path
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
    for path in FILES.glob("*.css"):
        assert not re.search(r"https?:|@import", path.read_text()), path


def test_every_string_has_both_languages_and_every_key_that_is_used_exists():
    source = (FILES / "strings.js").read_text()
    pairs = re.findall(r'^  (\w+): \[\s*("(?:[^"\\]|\\.)*"),\s*("(?:[^"\\]|\\.)*"),?\s*\],?$', source, re.M)
    strings = {key: (english, chinese) for key, english, chinese in pairs}
    assert len(strings) == len(re.findall(r"^  \w+: \[", source, re.M)) > 100
    same = {"top_p"}
    for key, (english, chinese) in strings.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), key
        assert key in same | {"comma"} or re.search(r"[一-鿿]", chinese), key
        assert key == "comma" or not re.search(r"[一-鿿]", english), key
    texts = [path.read_text() for path in MODULES]
    used = {key for text in texts for key in re.findall(r'\bt\("(\w+)"', text)}
    used |= set(re.findall(r'data-(?:text|label)="(\w+)"', (FILES / "index.html").read_text()))
    assert len(used) > 80
    assert used - set(strings) == set()
