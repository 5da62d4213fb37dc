"""The labels of a classifier in config.json: names by number, and what its outputs mean."""

from typing import Literal

from bertgpt.convert.settings import shown
from bertgpt.types import JsonObject, Labels, UserError

Kind = Literal["label", "labels", "number"]
KINDS: dict[str, Kind] = {
    "single_label_classification": "label",
    "multi_label_classification": "labels",
    "regression": "number",
}
"""problem_type → what each text has: one label (softmax), any number of them (sigmoid), a number (the output itself)"""


def read_labels(values: JsonObject, file: str, head: str, rows: int) -> Labels:
    """The labels of a classifier or tagger.

    Args:
      values: the object in config.json.
      file: what to call it in messages.
      head: "classifier" or "tagger".
      rows: its outputs.

    Raises:
      UserError: the names are not those of exactly these outputs, two are the same, or the problem is unknown.
    """
    names = read_names(values, file, head, rows)
    return Labels(names, kind="tag" if head == "tagger" else read_kind(values, file, rows))


def read_kind(values: JsonObject, file: str, rows: int) -> Kind:
    """What each text has, as transformers' text-classification pipeline decides it. Errors: UserError."""
    problem = values.get("problem_type")
    if problem is None or problem == "single_label_classification":
        return "label" if rows > 1 else "labels"  # a softmax over one class would always be 1
    if not isinstance(problem, str) or problem not in KINDS:
        raise UserError(f"{file}: problem_type={shown(problem)} is not supported; only {', '.join(KINDS)}")
    return KINDS[problem]


def read_names(values: JsonObject, file: str, head: str, rows: int) -> tuple[str, ...]:
    """The name of each output, by the keys of id2label; () if the file names none. Errors: UserError."""
    named = values.get("id2label")
    if named is None:
        for field in ("num_labels", "_num_labels"):
            if values.get(field, rows) != rows:
                raise UserError(f"{file}: {field}={shown(values[field])}, but the {head} has {rows} outputs")
        return ()
    if not isinstance(named, dict):
        raise UserError(f"{file}: id2label={shown(named)} must be an object such as {{'0': 'no', '1': 'yes'}}")
    found: dict[int, str] = {}
    for key, name in named.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise UserError(f"{file}: id2label: {shown(key)} is not the number of a class")
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            raise UserError(f"{file}: id2label: {shown(name)} is not the name of a class")
        if int(key) in found:
            raise UserError(f"{file}: id2label names class {int(key)} twice")
        found[int(key)] = str(name)
    if found.keys() != set(range(rows)):
        wrong = sorted(found.keys() - set(range(rows))) or sorted(set(range(rows)) - found.keys())
        does = "names" if wrong[0] in found else "does not name"
        raise UserError(f"{file}: id2label {does} class {wrong[0]}, but the {head} has {rows} outputs")
    names = tuple(found[i] for i in range(rows))
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{file}: id2label gives classes {names.index(name)} and {i} the same name, {shown(name)}")
    return names
