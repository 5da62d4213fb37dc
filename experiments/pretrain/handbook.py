"""The Debian handbook as a multilingual corpus: HTML pages → one .jsonl file with the text and language of each page.

python -m bertgpt.experiments.pretrain.handbook HTML_DIRECTORY OUT.jsonl
"""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

LANGUAGES = ("en-US", "de-DE", "fr-FR", "es-ES", "ru-RU", "ja-JP", "zh-CN", "zh-TW")


class Paragraphs(HTMLParser):
    """Collects the text of <div class="para"> and of its children."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.inside = 0  # depth of <div> below the outermost paragraph

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "div":
            if not self.inside and ("class", "para") in attrs:
                self.found.append("")
                self.inside = 1
            elif self.inside:
                self.inside += 1

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag == "div" and self.inside > 0

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1] += data


def main(source: str, out: str) -> None:
    count = 0
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", encoding="utf-8") as file:
        for language in LANGUAGES:
            for page in sorted(Path(source, language).glob("*.html")):
                parser = Paragraphs()
                parser.feed(page.read_text(encoding="utf-8"))
                text = "\n".join(" ".join(paragraph.split()) for paragraph in parser.found)
                if text:
                    file.write(json.dumps({"text": text, "language": language}, ensure_ascii=False) + "\n")
                    count += 1
    print(f"{out}: {count} pages")


if __name__ == "__main__":
    main(*sys.argv[1:])
