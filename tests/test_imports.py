"""The floors of DESIGN, by package and without exceptions, and the bounds on what is probed for or left untyped."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bertgpt"
FLOORS = (
    {"types", "ranges", "config", "overrides", "distributed", "sharding", "io", "runs"},
    {"layers", "objectives", "data"},
    {"models", "tasks", "prepare", "adaptation"},
    {"convert"},
    {"inference"},
    {"training"},
    {"studies", "planning", "serving"},
    {"cli", "experiments", "__main__", "__init__"},
)
NEVER = {  # importer → what it must not know at all
    "objectives": {"models", "layers"},
    "training": {"models", "objectives", "tasks", "layers"},
    "data": {"layers", "sharding"},
    "tasks": {"models", "layers"},
}
FLAX = ("layers", "models", "sharding.py", "training/state.py")
HEAVY = set("onnx tensorflow_datasets apache_beam optuna matplotlib torch sklearn tensorboardX".split())
SERVING = set("starlette uvicorn msgspec orjson prometheus_client jinja2".split())
# Those of [serve] are what bertgpt.serving is made of, which nothing imports but `bertgpt serve` when it is called.
WITHOUT_EXTRAS = ("serving/limits.py", "serving/errors.py", "serving/__init__.py")
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def under_type_checking(tree: ast.Module) -> set[int]:
    """Ids of the nodes inside `if TYPE_CHECKING:`, which never run."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return {id(inner) for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, those imported inside functions too; `from package import module` is the module."""
    tree = TREES[path]
    skipped = under_type_checking(tree)
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & {module_name(other) for other in FILES}
            found |= modules or {node.module}
    return found


def within_bertgpt(path: Path) -> set[str]:
    return {module for module in imports(path) if module.startswith("bertgpt.")}


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """A circle of the graph, [] if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := visit(node, []))), [])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upward(path: Path):
    here = package(path)
    for module in within_bertgpt(path) - {"bertgpt.experiments"}:
        there = module.split(".")[1]
        assert there not in NEVER.get(here, set()), f"{here} must not import {there}"
        assert floor(there) <= floor(here), (
            f"{here} (floor {floor(here)}) must not import {there} (floor {floor(there)})"
        )


def test_packages_do_not_import_each_other_in_a_circle():
    edges: dict[str, set[str]] = {}
    for path in FILES:
        edges.setdefault(package(path), set()).update(module.split(".")[1] for module in within_bertgpt(path))
    assert not circle({name: found - {name} for name, found in edges.items()})


def test_modules_do_not_import_each_other_in_a_circle():
    assert not circle({module_name(path): within_bertgpt(path) for path in FILES})


def test_a_circle_is_found():
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert circle({"a": ["b", "c"], "b": ["c"]}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path: Path):
    modules = imports(path, top_level_only=True)
    serves = package(path) == "serving" and not str(path.relative_to(ROOT)).endswith(WITHOUT_EXTRAS)
    assert not {module.split(".")[0] for module in modules} & (HEAVY if serves else HEAVY | SERVING)
    if not serves:
        allowed = {f"bertgpt.{name.removesuffix('.py').replace('/', '.')}" for name in WITHOUT_EXTRAS}
        assert not {module for module in modules if module.startswith("bertgpt.serving.")} - allowed


def test_flax_is_used_only_where_it_may_be():
    using = {
        str(path.relative_to(ROOT)) for path in FILES if any(module.split(".")[0] == "flax" for module in imports(path))
    }
    assert not {name for name in using if not name.startswith(FLAX)}


def test_contracts_and_data_import_no_jax():
    without = [ROOT / "types.py", *(path for path in (ROOT / "data").rglob("*.py") if path.name != "loader.py")]
    assert not [path for path in without if any(module.split(".")[0] == "jax" for module in imports(path))]


def test_importing_bertgpt_imports_no_jax_and_sets_no_flag():
    code = (
        "import os, sys; old = dict(os.environ); import bertgpt\nassert 'jax' not in sys.modules and old == os.environ"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_dir_lists_the_public_names_and_each_of_them_exists():
    import bertgpt

    assert set(bertgpt.__all__) <= set(dir(bertgpt))
    for name in bertgpt.__all__:
        assert getattr(bertgpt, name) is not None


def test_files_stay_readable():
    long = {str(path.relative_to(ROOT)) for path in FILES if len(path.read_text().splitlines()) > 400}
    assert long <= {"types.py"}  # every contract in one file, mostly docstrings


# -- bounds -----------------------------------------------------------------------------------------------------------


def probes() -> list[str]:
    """file:line of each call of getattr or hasattr."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
    ]


def annotations(tree: ast.Module) -> list[ast.expr]:
    """Every annotation of an argument, a result or a variable, and the right-hand sides of type aliases."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.Name):
            found.append(node.value)  # Batch = dict[str, Any]
    return [annotation for annotation in found if annotation is not None]


def untyped() -> list[str]:
    """file:line of each `Any` in an annotation."""
    return [
        f"{path.relative_to(ROOT)}:{name.lineno}"
        for path, tree in TREES.items()
        for annotation in annotations(tree)
        for name in ast.walk(annotation)
        if isinstance(name, ast.Name) and name.id == "Any"
    ]


def test_few_attributes_are_probed_for():
    assert len(probes()) <= 15, probes()


def test_few_annotations_are_any():
    assert len(untyped()) <= 150, len(untyped())


PREPARING = ("prepare", "add_targets")  # functions of objectives that add fields to a batch
READERS = ("objectives", "training", "tasks", "data", "inference")  # packages that read fields of batches


def literal_keys(node: ast.AST) -> set[str]:
    """String keys of all dicts written out within a node."""
    dicts = [inner for inner in ast.walk(node) if isinstance(inner, ast.Dict)]
    return {key.value for found in dicts for key in found.keys if isinstance(key, ast.Constant)}


def strings(node: ast.AST) -> set[str]:
    return {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) and isinstance(inner.value, str)}


def declared_fields() -> set[str]:
    """Fields in a BatchSpec: keys of dicts of Field, and names in the functions `needs` and `spec`."""
    found: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found |= {
                    key.value
                    for key, value in pairs
                    if isinstance(key, ast.Constant)
                    and isinstance(value, ast.Call)
                    and ast.unparse(value.func) == "Field"
                }
            elif isinstance(node, ast.FunctionDef) and node.name in ("needs", "spec"):
                found |= strings(node)
    return found


def prepared_fields() -> set[str]:
    """Fields that objectives add to a batch: keys of dicts in their functions that prepare it."""
    nodes = [node for path in (ROOT / "objectives").glob("*.py") for node in ast.walk(TREES[path])]
    preparing = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name in PREPARING]
    return set().union(*(literal_keys(function) for function in preparing))


def fields_read() -> dict[str, str]:
    """Field → file:line where it is read from a variable that is called batch or prepared."""
    found = {}
    for path, tree in TREES.items():
        if package(path) not in READERS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("batch", "prepared"):
                if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                    found[node.slice.value] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def test_no_field_of_a_batch_is_read_that_nothing_declares():
    read, declared = fields_read(), declared_fields() | prepared_fields()
    assert len(read) > 20 and "input_ids" in read
    undeclared = {name: place for name, place in read.items() if name not in declared}
    assert not undeclared
