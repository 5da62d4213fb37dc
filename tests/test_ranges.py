"""Values of fields: every number declares its range, and nothing outside of it is accepted."""

import dataclasses
import importlib
import math
import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import pytest

import bertgpt
from bertgpt.config import Mesh
from bertgpt.inference.decoding import Decoding
from bertgpt.layers.moe import Experts
from bertgpt.models.bert import BertConfig
from bertgpt.models.t5 import T5Config
from bertgpt.ranges import LARGEST, Count, Epsilon, Fraction, Natural, Positive, Range, Rate, field_type, mismatch
from bertgpt.training.optim import AdamW, Lamb
from bertgpt.types import UserError

# What the program fills in itself.
UNCHECKED = {"Vocab", "TrainState", "Family"}


def config_classes() -> list[type]:
    """Every frozen dataclass of the package whose fields a user sets."""
    root = Path(bertgpt.__path__[0])
    found = []
    for path in sorted(root.rglob("*.py")):
        declared = re.findall(r"@dataclasses.dataclass\(frozen=True\)\nclass (\w+)", path.read_text(encoding="utf-8"))
        names = [name for name in declared if name not in UNCHECKED]
        if names:
            module = importlib.import_module(".".join(("bertgpt", *path.relative_to(root).with_suffix("").parts)))
            found += [vars(module)[name] for name in names]
    return found


def numbers_in(declared: object) -> list[object]:
    """The int and float types in a declared type that have no range."""
    if get_origin(declared) is Annotated:
        ranged = any(isinstance(mark, Range) for mark in get_args(declared)[1:])
        return [] if ranged else numbers_in(get_args(declared)[0])
    if get_origin(declared) is Literal:
        return []
    return [declared] if declared in (int, float) else [n for inner in get_args(declared) for n in numbers_in(inner)]


def test_every_number_of_every_config_declares_its_range():
    classes = config_classes()
    assert len(classes) > 70
    bare = {
        f"{cls.__name__}.{field.name}"
        for cls in classes
        for field in dataclasses.fields(cls)
        if numbers_in(field_type(cls, field.name))
    }
    assert not bare


@pytest.mark.parametrize(
    "declared, fits, others",
    [
        (Count, (1, LARGEST), ((0, "at least 1"), (-1, "at least 1"), (LARGEST + 1, "at most 2,147,483,647"))),
        (Natural, (0,), ((-1, "not be negative"), (1.0, "a whole number"), (True, "a whole number"))),
        (Positive, (1e-30, 3), ((0.0, "be positive"), (math.nan, "finite"), (math.inf, "finite"), (1e30, "at most"))),
        (Rate, (0.0, 0.999), ((1.0, r"lie in [0, 1)"), (-0.1, "lie in [0, 1)"), (False, "a number"))),
        (Fraction, (0, 1), ((1.0001, "lie in [0, 1]"),)),
        (Epsilon, (1e-12,), ((0.0, "lie in (0, 0.1]"), (1e30, "lie in (0, 0.1]"))),
        (Count | None, (None, 3), ((0, "be at least 1"), ("3", "be a whole number or None"))),
        (tuple[Positive, ...], ((), (1.0,)), (((1.0, -1.0), "be positive"), ([1.0], "be a tuple"))),
        (Literal["min", 1], ("min", 1), (("max", "be min or 1"), (True, "be min or 1"))),
        (str | None, ("é", None), (("\ud800", "UTF-8"), ("a\0", "NUL"), (1, "be a text or None"))),
        (bool, (True,), ((1, "True or False"), ("false", "True or False"))),
        (Mesh, (Mesh(),), (({}, "be a Mesh"),)),
    ],
)
def test_a_value_fits_or_the_error_says_what_would(declared: object, fits: tuple, others: tuple):
    assert [mismatch(declared, value) for value in fits] == [""] * len(fits)
    for value, message in others:
        assert message in mismatch(declared, value), value


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AdamW(clip_norm=-1.0), "AdamW: clip_norm=-1.0 must be positive"),
        (lambda: AdamW(clip_norm=0.0), "AdamW: clip_norm=0.0 must be positive"),
        (lambda: AdamW(decay_steps=-1), "AdamW: decay_steps=-1 must be at least 1"),
        (lambda: AdamW(weight_decay=math.inf), "weight_decay=inf must be a finite number"),
        (lambda: Lamb(b1=1.0), r"Lamb: b1=1.0 must lie in \[0, 1\)"),
        (lambda: Lamb(warmup_steps=-3), "Lamb: warmup_steps=-3 must not be negative"),
        (lambda: BertConfig(stddev=-1.0), r"Bert: stddev=-1.0 must lie in \(0, 1\]"),
        (lambda: BertConfig(classifier_dropout=1.5), r"Bert: classifier_dropout=1.5 must lie in \[0, 1\)"),
        (lambda: BertConfig(first_position=-1), "Bert: first_position=-1 must not be negative"),
        (lambda: BertConfig(norm_eps=1e30), r"Bert: norm_eps=1e\+30 must lie in \(0, 0.1\]"),
        (lambda: BertConfig(embed_dim=0), "Bert: embed_dim=0 must be at least 1"),
        (lambda: T5Config(num_buckets=0), "T5: num_buckets=0 must be at least 4"),
        (lambda: T5Config(num_buckets=1), "T5: num_buckets=1 must be at least 4"),
        (lambda: T5Config(num_buckets=32, max_distance=16), "T5: num_buckets=32 must be even, and half of them fewer"),
        (lambda: T5Config(start_id=32_128), "T5: start_id=32128 must be below vocab_size=32128"),
        (lambda: Experts(fixed_capacity=-1), "Experts: fixed_capacity=-1 must be at least 1"),
        (lambda: Decoding(num_beams=1_000_000), "Decoding: num_beams=1000000 must be at most 1,000"),
        (lambda: Decoding(num_return_sequences=10**8), "num_return_sequences=100000000 must be at most 10,000"),
        (lambda: Decoding(top_k=-3), "Decoding: top_k=-3 must be at least 1"),
        (lambda: Mesh(tensor=-2), "Mesh: tensor=-2 must be at least -1"),
    ],
)
def test_senseless_values_are_refused_by_name(make: object, message: str):
    with pytest.raises(UserError, match=message):
        make()
