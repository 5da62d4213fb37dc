"""No order depends on hashing: Python seeds the hashes of texts anew in every process."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bertgpt

PACKAGE = Path(bertgpt.__file__).parent
# What does not depend on the order of its argument.
ORDERLESS = {"all", "any", "frozenset", "len", "max", "min", "set", "sorted", "sum"}
SET_METHODS = {"union", "intersection", "difference", "symmetric_difference"}


def is_set(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is a set, as far as its text shows; `names` are variables that hold sets."""
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Call):
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        return called in ("set", "frozenset") or method in SET_METHODS
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        keys = any(
            isinstance(side, ast.Call) and ast.unparse(side.func).endswith(".keys") for side in (node.left, node.right)
        )
        return keys or is_set(node.left, names) or is_set(node.right, names)
    return isinstance(node, ast.Set | ast.SetComp)


def ordered_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, code) of each place in a function where the order of a set matters: loops, lists and tuples of it."""
    assigned = [
        (target.id, is_set(node.value, set()))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    names = {name for name, _ in assigned} - {name for name, holds_set in assigned if not holds_set}
    harmless: set[ast.AST] = set()
    for node in ast.walk(tree):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if name in ORDERLESS:
            harmless.update(node.args)
        used: list[ast.expr] = []
        if isinstance(node, ast.For):
            used = [node.iter]
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp) and node not in harmless:
            used = [part.iter for part in node.generators]
        elif isinstance(node, ast.Starred) or name in ("list", "tuple", "enumerate", "iter", "zip"):
            used = [node.value] if isinstance(node, ast.Starred) else node.args
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join":
            used = node.args
        yield from ((node.lineno, ast.unparse(node)) for part in used if is_set(part, names))


def test_the_search_finds_loops_over_sets_and_nothing_else():
    def found(code: str) -> int:
        return len(list(ordered_uses(ast.parse(code))))

    assert (
        found("for x in {1, 2}: f(x)") == found("a = set(b)\nc = [x for x in a]") == found("tuple(a.keys() - b)") == 1
    )
    assert found("', '.join(set(a))") == found("x = [*frozenset(a)]") == 1
    assert found("sorted(set(a)); len({1}); all(f(x) for x in {1, 2}); {x for x in {1, 2}}; x in {1}") == 0


def test_no_result_takes_the_order_of_a_set():
    functions = [
        (path, node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    found = {f"{path.name}:{line}: {code[:80]}" for path, node in functions for line, code in ordered_uses(node)}
    assert len(functions) > 1000 and not found


SCRIPT = """
import json, sys
import numpy as np
from bertgpt.config import fingerprint
from bertgpt.data.mixture import MixedDataset
from bertgpt.data.examples import Side, SequenceDataset
from bertgpt.tasks.classification import TextClassification
from bertgpt.tasks.tagging import TokenTagging
folder = sys.argv[1]
one, tags, plain = (
    TextClassification(folder + "/labels.csv", validation=0.0, test=0.0).infer(),
    TokenTagging(folder + "/tags.conll", validation=0.0, test=0.0).infer(),
    TokenTagging(folder + "/tags.conll", validation=0.0, test=0.0, scheme="plain").infer(),
)
several = TextClassification(folder + "/labels.csv", validation=0.0, test=0.0, target="labels", separator=";").infer()
parts = [SequenceDataset(Side([[1, 2]], 4, 0), Side([[1]], 2, 0), vocab_size=4) for _ in range(2)]
fields = list(MixedDataset(["a", "b"], parts).gather(np.arange(2)))
for c in (one, several, tags, plain):
    print(c.labels, fingerprint(c), [w.text for w in c.load("train").warnings])
print(fields)
"""


def test_labels_fingerprints_and_batches_are_the_same_under_every_hash_seed(tmp_path: Path):
    labels = ["1", "1.0", "01", "0", "1e0", "-1", "2"]
    (tmp_path / "labels.csv").write_text("text,label\n" + "".join(f"t{i},{labels[i % 7]}\n" for i in range(28)))
    rows = [f"w{i} {'BI'[i % 2]}-{'ABCDE'[i // 2 % 5]}" for i in range(40)]
    (tmp_path / "tags.conll").write_text("\n".join(rows) + "\n")
    answers = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]  # fmt: skip
    assert answers[0] == answers[1] == answers[2]
    assert "('-1', '0', '01', '1', '1.0', '1e0', '2')" in answers[0]
    assert "3 labels equal another one as a number, such as '01' and '1'" in answers[0]
