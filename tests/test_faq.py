"""The FAQ quotes messages that exist: each is part of a text of the code, with … for what is filled in."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FAQ = (ROOT / "docs/faq.md").read_text(encoding="utf-8")


def texts(node: ast.AST) -> Iterator[str]:
    """The texts below a node, with … for what is filled in, also of sums such as `text += "…"`."""
    for child in ast.walk(node):
        if isinstance(child, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in child.values)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value


def code() -> str:
    """All texts of the package, one a line."""
    files = sorted((ROOT / "bertgpt").rglob("*.py"))
    return "\n".join(text for path in files for text in texts(ast.parse(path.read_text(encoding="utf-8"))))


def quoted() -> list[str]:
    """The headings that are messages, and the messages about extras that are quoted below them."""
    headings = re.findall(r"^### `(.*)`$", FAQ, re.MULTILINE)
    extras = re.findall(r"`([^`\n]+: pip install 'bertgpt\[[^`]+|[^`\n]+; pip install 'bertgpt\[[^`]+)`", FAQ)
    return headings + extras


def parts(message: str) -> list[str]:
    """What stands between the gaps: a message may be put together from several texts of the code."""
    return [part for part in (piece.strip(" .;") for piece in message.split("…")) if len(part) > 4]


def test_every_quoted_message_exists_in_the_code():
    known, messages = code(), quoted()
    assert len(messages) > 25 and all(map(parts, messages))
    assert not [text for text in messages if text not in known and not all(part in known for part in parts(text))]
    assert "tokens but model.vocabulary=" not in known  # what does not exist is not found


def test_every_exit_code_of_the_command_line_is_explained():
    main = (ROOT / "bertgpt/cli/main.py").read_text(encoding="utf-8")
    used = set(re.findall(r"return (?:leave\()?(\d+)\b", main)) | {"3"}
    assert {"2", "70", "130"} <= used
    assert all(re.search(rf"^\| *{number} \|", FAQ, re.MULTILINE) for number in used)
