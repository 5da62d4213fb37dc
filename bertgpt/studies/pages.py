"""Tables as Markdown, and the page of a report as Markdown and as self-contained HTML."""

import base64
import html
from collections.abc import Sequence

from bertgpt.types import Table


def markdown_table(table: Table) -> str:
    """A table below its title."""
    head = "| " + " | ".join(table.columns) + " |"
    rule = "|" + "---|" + "---:|" * (len(table.columns) - 1)
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([f"## {table.title}\n", head, rule, *body])


def to_markdown(tables: Sequence[Table], verdicts: Sequence[str]) -> str:
    """The page as Markdown; its picture is report.png in the same folder."""
    parts = ["# bertgpt report", "![curves](report.png)", *map(markdown_table, tables)]
    if verdicts:
        parts += ["## Against the baselines", "\n".join(f"- {line}" for line in verdicts)]
    return "\n\n".join(parts) + "\n"


STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}img{max-width:100%}table{border-collapse:collapse}
th,td{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}"""


def to_html(tables: Sequence[Table], verdicts: Sequence[str], picture: bytes) -> str:
    """The page as one HTML file that contains its picture."""
    parts = []
    for table in tables:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows
        )
        parts.append(f"<h2>{html.escape(table.title)}</h2>\n<table><tr>{head}</tr>\n{rows}</table>")
    if verdicts:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in verdicts)
        parts.append(f"<h2>Against the baselines</h2>\n<ul>{items}</ul>")
    image = f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n<title>bertgpt report</title>\n'
        f"<style>{STYLE}</style>\n"
        f"<h1>bertgpt report</h1>\n{image}\n" + "\n".join(parts) + "\n</html>\n"
    )
