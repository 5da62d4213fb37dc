"""Configuration of the documentation site: `pip install -e '.[docs]' && python -m sphinx -W docs build/site`.

The API pages and the command-line reference are generated at the start of every build, from docstrings and from
`--help`, so a module or a flag that is added, moved or removed leaves no stale page behind.
"""

import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

typing.GENERATING_DOCUMENTATION = True  # jaxtyping then prints shapes as they are written: Float[Array, "B S"]

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bertgpt"
GENERATED = ROOT / "docs" / "reference" / "generated"

project = "bertgpt"
copyright = "The bertgpt developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "bertgpt"
html_copy_source = False
default_role = "code"
myst_heading_anchors = 3
napoleon_numpy_docstring = False
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
# Types in docstrings are plain names, and some fields of configs have the name of a type.
suppress_warnings = ["ref.python"]


def setup(app):
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=1)  # before napoleon


def write_pages(app):
    """Writes docs/reference/generated/: a page for each package, and one with the help text of every command."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir(parents=True)
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        name = ".".join(folder.relative_to(ROOT).parts)
        (GENERATED / f"{name}.md").write_text(api_page(name, folder), encoding="utf-8")
    (GENERATED / "cli.md").write_text(cli_page(), encoding="utf-8")


def api_page(package: str, folder: Path) -> str:
    parts = [f"# {package}", f"```{{eval-rst}}\n.. automodule:: {package}\n   :no-members:\n```"]
    for module in sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")):
        parts += [f"## {package}.{module}", f"```{{eval-rst}}\n.. automodule:: {package}.{module}\n```"]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    overview = help_text()
    parts = ["# Command line", "The output of `bertgpt --help` and of `bertgpt COMMAND --help`.", literal(overview)]
    for command in names_in(overview):
        text = help_text(command)
        parts += [f"## bertgpt {command}", literal(text)]
        for action in names_in(text) if "\nactions:" in text else ():
            parts += [f"### bertgpt {command} {action}", literal(help_text(command, action))]
    return "\n\n".join(parts) + "\n"


def names_in(text: str) -> list[str]:
    """The commands or actions that a help text lists, one at the start of a line."""
    return re.findall(r"^ {2,4}([a-z]\w*) {2,}\S", text, re.MULTILINE)


def help_text(*command: str) -> str:
    args = [sys.executable, "-m", "bertgpt", *command, "--help"]
    settings = os.environ | {"COLUMNS": "110", "NO_COLOR": "1"}
    return subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True, env=settings).stdout.strip()


def literal(text: str) -> str:
    return f"```text\n{text}\n```"


SECTION = re.compile(r"\s*(Args|Attributes|Example|Examples|Note|Raises|References|Returns|Yields|Warns):\s*$")
MARKUP = re.compile(r"(\*\w[^*]*\w\*(?!\w))|\*|\||(?<=\w)_(?!\w)")  # the first alternative is *emphasis*, which stays


def as_restructured_text(app, what, name, obj, options, lines):
    """Docstrings are written to be read in an editor; changes, in place, what reStructuredText would misread.

    Characters with a meaning there (`*`, `|`, a trailing `_`) are escaped outside of code, and a paragraph of entries
    whose later lines are indented becomes a list of these entries.
    """
    if what in ("attribute", "data"):
        lines[:0] = ["..", ""]  # an empty comment; else napoleon takes what stands before a colon for a type
    paragraphs = re.split(r"\n[ ]*\n", "\n".join(lines))
    lines[:] = "\n\n".join(map(as_list, paragraphs)).split("\n")
    for number, line in enumerate(lines):
        if ">>>" not in line and not line.startswith("    "):
            parts = line.split("`")
            parts[::2] = [MARKUP.sub(lambda found: found[1] or f"\\{found[0]}", part) for part in parts[::2]]
            lines[number] = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "`".join(parts))


def as_list(paragraph: str) -> str:
    lines = paragraph.split("\n")
    margin = len(lines[0]) - len(lines[0].lstrip())
    deeper = [line.startswith(" " * (margin + 1)) for line in lines[1:]]
    if SECTION.match(lines[0]) or lines[0].lstrip().startswith(("-", "*", ">>>")) or all(deeper) or not any(deeper[1:]):
        return paragraph
    entries = (line if line.startswith(" " * (margin + 1)) else f"- {line[margin:]}" for line in lines)
    return "\n".join(" " * margin + (f"  {entry.strip()}" if entry.startswith(" ") else entry) for entry in entries)
