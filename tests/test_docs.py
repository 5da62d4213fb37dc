"""What the documents show is true: commands parse, Python compiles, links lead somewhere, named functions exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from bertgpt.cli.experiments import load_experiments, with_fields
from bertgpt.cli.main import COMMANDS
from bertgpt.cli.options import parse_options

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "README.zh.md", "CHANGELOG.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "experiments/finetune", "tpu_scripts")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts),
]
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").rglob("*.py") if path.stem != "__init__")
PLACEHOLDERS = {"EXPERIMENT", "FILE", "FILE:ARM"}  # where a document means any experiment


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands_in(script: str) -> list[list[str]]:
    """The words of every bertgpt command in a shell script, without “bertgpt” itself."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            if words[0].rpartition("/")[2] == "bertgpt":
                found.append(words[1:end])
            words = words[end + 1 :]
    return found


def document_commands(text: str) -> list[list[str]]:
    """Those in fenced blocks and in inline code, except for sketches such as `bertgpt COMMAND --help`."""
    inline = re.findall(r"`(bertgpt [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    sketches = ("COMMAND", "…", "train EXPERIMENT")
    fenced = [command for block in blocks(text, "sh") for command in commands_in(block)]
    return fenced + [c for line in inline if not any(s in line for s in sketches) for c in commands_in(line)]


def docstring_commands(path: Path) -> list[list[str]]:
    """Those in the docstring of an experiment. Lines that begin with a flag go on with the command before them."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    lines = [re.sub(r"^Run\s+", "", line).strip() for line in text.splitlines()]
    script = "\n".join(lines).replace("\n--", " --")
    return commands_in("\n".join(line for line in script.splitlines() if re.match(r"(.*&& )?bertgpt ", line)))


def parse(command: list[str]) -> None:
    """Parses a command as `bertgpt` does, without running it; fields are checked against the experiments they set.

    Of a command that is only named in a sentence, or shown with --help, the name is checked.
    """
    name, *args = command
    assert name in (*COMMANDS, "--help", "--version"), f"no command {name}"
    if not args or "--help" in args:
        return
    module = importlib.import_module(f"bertgpt.cli.{name}")
    if "ACTIONS" in vars(module):
        (action, *args), actions = args, module.ACTIONS
        options = parse_options(actions[action], args, f"bertgpt {name} {action}")
    else:
        options = parse_options(module.COMMAND, args, f"bertgpt {name}")
    given = vars(options)
    names = given.get("experiments", (given["experiment"],) if "experiment" in given else ())
    if names and not PLACEHOLDERS & set(names):
        with_fields([item for each in names for item in load_experiments(each)], given.get("fields", ()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_in_the_documents_parses(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for command in document_commands(path.read_text(encoding="utf-8")):
        parse(command)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_command_in_the_docstring_of_an_experiment_parses(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for command in docstring_commands(path):
        parse(command)


def test_commands_are_found_where_they_are_written():
    readme = document_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert ["predict", "runs/mine", "--text", "A warm and funny film."] in readme and len(readme) >= 10
    assert docstring_commands(ROOT / "experiments/finetune/translation.py")[0][:3] == [
        "train", "finetune/translation", "--data.path",
    ]  # fmt: skip
    run = {path: path.read_text("utf-8").partition("\nRun ")[2].partition("\nHardware")[0] for path in EXPERIMENTS}
    assert len([text for text in run.values() if text]) > 40
    assert not [path for path, text in run.items() if "bertgpt train" in text and not docstring_commands(path)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_in_the_documents_compiles(path: Path):
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        compile(block, str(path), "exec")


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_between_documents_lead_somewhere(path: Path):
    """Generated pages are written when the site is built, which checks links to them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        file = path if not target else (path.parent / target).resolve()
        if "generated" not in file.parts:
            assert file.exists(), f"{path}: {target}"
            assert not anchor or anchor in anchors(file), f"{path}: {target}#{anchor}"


def test_the_functions_that_the_derivation_names_exist():
    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("mlm_loss.md", "zh/mlm_loss.md"))
    named = re.findall(r"`([\w/]+\.py): (\w+)", text)
    assert len(named) >= 16
    for file, name in named:
        tree = ast.parse((ROOT / "bertgpt" / file).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"bertgpt/{file} has no {name}"


def test_the_files_that_documents_name_exist():
    """Paths below the repository in inline code, such as `experiments/finetune/bigbench.py`."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:bertgpt|experiments|tests|benchmarks|docs|tpu_scripts)/[\w/.]+)`", text):
            assert (ROOT / name).exists(), f"{path}: {name}"
