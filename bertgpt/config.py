"""Experiments as values: the frozen dataclass that describes a run, and what one may do to it.

An experiment is a tree of frozen dataclasses. Every leaf has a dotted path (`objective.mask_rate`), so that the command
line, ablations, the resume check and `experiment.json` all speak of the same names. Python sets structure
(`dataclasses.replace`), the command line sets leaves.
"""

import dataclasses
import difflib
import hashlib
import importlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices each kind of parallelism uses; one axis may be -1, all devices that remain."""

    data: int = -1
    """copies of the model, each with its own rows of the batch"""
    fsdp: int = 1
    """data parallel too, with parameters and optimiser state sharded (ZeRO-3)"""
    tensor: int = 1
    """heads, feed-forward and vocabulary split across devices (Megatron)"""


@dataclasses.dataclass(frozen=True)
class Eval:
    """One named evaluation: another split of the experiment's data, scored by its objective, unless given here."""

    name: str
    """name under which its numbers are logged"""
    split: Literal["train", "validation", "test"]
    """which part of the data it reads"""
    max_batches: int | None = None
    """evaluate at most this many batches (None: the whole split)"""
    final_only: bool = False
    """run at the end of training only, as a test set should"""
    objective: Any = None
    """score by this objective, so that runs with different ones compare; None: the experiment's own"""
    data: Any = None
    """score on this data, such as one part of a mixture or another domain; None: the experiment's own"""
    decode: Any = None
    """how to generate the texts that the data's `evaluate_texts` scores (a Decoding); None: the model generates none"""


VALIDATION = Eval("validation", "validation")
TEST = Eval("test", "test", final_only=True)


Trainable = Literal["all", "head", "bias", "adapter"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run depends on: model + objective + data + optimiser + mesh."""

    name: str
    """name of the run, and of its folder under --workdir"""
    model: Any
    """architecture: a config whose make(dtype) gives a flax module; None: that of init_from"""
    objective: Any
    """what is learnt: a config whose make(vocab) gives prepare, loss and predict"""
    data: Any
    """what it is learnt from: a config whose make(...) gives one batch for each step"""
    optim: Any
    """how: a config whose make(steps) gives an optax transformation and its schedule"""
    steps: int
    """number of optimiser updates"""
    batch_size: int
    """sequences in one update, over all devices and microbatches"""
    microbatches: int = 1
    """split each batch into this many pieces to save memory; the result is the same"""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """type of activations and matmul inputs; parameters, optimiser, softmax, norms and losses stay float32. On a CPU
    bfloat16 is for matmul inputs alone"""
    mesh: Mesh = Mesh()
    """layout of the devices"""
    evals: tuple[Eval, ...] = (VALIDATION,)
    """named evaluations"""
    baselines: tuple[Any, ...] = ()
    """model-free predictors scored on the same held-out data, for comparison"""
    init_from: str | None = None
    """start from these weights: a run under the same --workdir by name, or the path of a run, a converted model or a
    Hugging Face directory"""
    reinitialize: tuple[str, ...] = ()
    """parameters, by their first names, that start anew although init_from has them, such as a head for other labels"""
    trainable: Trainable = "all"
    """which parameters are trained: all; those of no pretrained network (head), or with them its biases (BitFit,
    Ben Zaken et al. 2022), or its adapters and norms (Houlsby et al. 2019); the rest stays as it is, bit for bit"""
    lora: Any = None
    """train low-rank products (a bertgpt.adaptation.lora.Lora) and heads in place of the network's kernels; None: no"""
    seed: int = 0
    """fixes initial weights, data order, masking and dropout"""
    log_every: int = 50
    """updates between log lines"""
    eval_every: int = 0
    """updates between evaluations (0: at the end only)"""
    save_every: int = 0
    """updates between checkpoints (0: at the end only)"""
    keep_last: int = 1
    """how many of the newest checkpoints to keep"""
    keep_best: int = 0
    """how many of the best checkpoints to keep beside them"""
    best_metric: str = "validation/loss"
    """metric that ranks checkpoints for keep_best"""
    best_mode: Literal["min", "max"] = "min"
    """whether a low or a high best_metric is good"""

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UserError(f"name={self.name!r} must be letters, digits, '_', '-' or '.', for it names a folder")
        for field in ("steps", "batch_size", "microbatches", "log_every", "keep_last"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1")
        for field in ("eval_every", "save_every", "keep_best"):
            if getattr(self, field) < 0:
                raise UserError(f"{field}={getattr(self, field)} must not be negative")
        if self.batch_size % self.microbatches:
            raise UserError(f"batch_size={self.batch_size} is not divisible by microbatches={self.microbatches}")


# Leaves that change how a run is carried out or watched, not what it computes: free to differ on resume.
OPERATIONAL = (
    "mesh",
    "evals",
    "baselines",
    "log_every",
    "eval_every",
    "save_every",
    "keep_last",
    "keep_best",
    "best_metric",
    "best_mode",
)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of every leaf, in field order; a part also yields its type as `path.type`."""
    if dataclasses.is_dataclass(config):
        if prefix:
            yield prefix + "type", type_name(type(config))
        for field in dataclasses.fields(config):
            yield from leaves(getattr(config, field.name), f"{prefix}{field.name}.")
    elif isinstance(config, tuple) and any(dataclasses.is_dataclass(item) for item in config):
        for i, item in enumerate(config):
            yield from leaves(item, f"{prefix}{i}.")
    else:
        yield prefix[:-1], config


def type_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def with_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Returns `config` with the leaves at these dotted paths replaced, all at once: only the result need be valid.

    Raises:
      UserError: a path that does not exist; the message names the nearest one that does.
    """
    return _replace(config, {tuple(path.split(".")): value for path, value in overrides.items()}, (), config)


def _replace(config: Any, overrides: Mapping[tuple[str, ...], Any], above: tuple[str, ...], root: Any) -> Any:
    if () in overrides:
        return overrides[()]
    below: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *rest), value in overrides.items():
        below.setdefault(name, {})[tuple(rest)] = value
    if isinstance(config, tuple):
        members = {str(i): item for i, item in enumerate(config)}
    else:
        fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
        members = {field.name: getattr(config, field.name) for field in fields}
    for name, inner in below.items():
        if name not in members:
            path = ".".join((*above, name, *next(iter(inner))))
            near = difflib.get_close_matches(path, [leaf for leaf, _ in leaves(root)], n=1)
            raise UserError(f"no field {path!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    changed = {name: _replace(members[name], inner, (*above, name), root) for name, inner in below.items()}
    return tuple((members | changed).values()) if isinstance(config, tuple) else dataclasses.replace(config, **changed)


def arms(base: Experiment, deltas: Mapping[str, Mapping[str, Any]]) -> dict[str, Experiment]:
    """An ablation: each arm is `base` with the given leaves replaced, named `<base>.<arm>`."""
    return {arm: with_overrides(base, {"name": f"{base.name}.{arm}", **delta}) for arm, delta in deltas.items()}


def with_seeds(experiments: Mapping[str, Experiment], seeds: Sequence[int]) -> dict[str, Experiment]:
    """Each arm once for every seed, named `<arm>.<seed>`; if it starts from another arm, then from the same seed's."""
    names = {experiment.name for experiment in experiments.values()}
    found = {}
    for arm, experiment in experiments.items():
        for seed in seeds:
            start = experiment.init_from
            found[f"{arm}.{seed}"] = dataclasses.replace(
                experiment,
                name=f"{experiment.name}.{seed}",
                seed=seed,
                init_from=f"{start}.{seed}" if start in names else start,
            )
    return found


def infer(experiment: Experiment) -> Experiment:
    """With what only the data knows filled in, such as its labels: parts that have a `settle` tell.

    The settled experiment is what a run keeps, so that it can be used where its data is not.
    """
    data = experiment.data.infer() if hasattr(experiment.data, "infer") else experiment.data

    def objective_for(objective: Any, data: Any) -> Any:
        return objective.infer(data) if hasattr(objective, "infer") else objective

    evals = []
    for item in experiment.evals:
        own = item.data.infer(data) if hasattr(item.data, "infer") else item.data
        evals.append(dataclasses.replace(item, data=own, objective=objective_for(item.objective, own or data)))
    objective = objective_for(experiment.objective, data)
    return dataclasses.replace(experiment, data=data, objective=objective, evals=tuple(evals))


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted path → (value in a, value in b), for every leaf that differs; a leaf that one side lacks is '<absent>'."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return {
        path: (left.get(path, "<absent>"), right.get(path, "<absent>"))
        for path in [*left, *(p for p in right if p not in left)]
        if path not in left or path not in right or left[path] != right[path]
    }


def fingerprint(config: Any) -> str:
    """A short digest of every leaf: equal exactly when `diff` is empty."""
    return hashlib.sha256(json.dumps(list(leaves(config)), default=list).encode()).hexdigest()[:16]


def to_json(config: Any) -> Any:
    """A config as JSON values; each part carries its type as `"type": "module:Class"`."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type_name(type(config)), **fields}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    if isinstance(config, float) and not math.isfinite(config):
        raise UserError(f"a config holds {config}, which JSON cannot keep")
    return config


def from_json(value: Any) -> Any:
    """The inverse of `to_json`. Only dataclasses are ever constructed.

    Raises:
      UserError: a type that is not a dataclass of bertgpt or of a module imported already, or unknown fields.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {name: from_json(item) for name, item in value.items() if name != "type"}
    module, _, name = str(value.get("type")).partition(":")
    try:
        if not module.startswith("bertgpt.") and module not in sys.modules:
            raise ImportError(f"{module} is not part of bertgpt; import it first")
        cls = getattr(importlib.import_module(module), name)
        if not dataclasses.is_dataclass(cls):
            raise ImportError("not a dataclass")
        return cls(**fields)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"cannot rebuild {value.get('type')!r} from its JSON: {error}") from None
