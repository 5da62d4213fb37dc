"""Experiments as values: the frozen dataclass that describes a run, and functions on it.

An experiment is a tree of frozen dataclasses. Every leaf has a dotted path (`objective.mask_rate`), which the command
line, ablations, the resume check and `experiment.json` share. Python sets structure (`dataclasses.replace`), the
command line sets leaves.
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
from typing import Annotated, Any, Literal, TypeVar

from bertgpt.ranges import Count, Natural, NonNegative, Positive, Range, Seed, check_fields, shown
from bertgpt.types import DataConfig, ModelConfig, ObjectiveConfig, UserError

Config = TypeVar("Config")

# Marks a field that changes how a run is carried out or watched, not what it computes: it may differ on resume and is
# not part of the fingerprint.
_OPERATIONAL = {"operational": True}


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices each kind of parallelism uses; one axis may be -1, all remaining devices.

    The batch is split over dcn, data, fsdp and expert.
    """

    dcn: Annotated[int, Range(-1)] = 1
    """data parallelism over slices, or groups of hosts, that the data-center network connects"""
    data: Annotated[int, Range(-1)] = -1
    """data parallelism: copies of the model, each on its own part of the batch"""
    fsdp: Annotated[int, Range(-1)] = 1
    """data parallelism with parameters and optimiser state sharded (ZeRO-3)"""
    expert: Annotated[int, Range(-1)] = 1
    """expert parallelism: each device holds some of the experts of a Switch layer, and tokens go to them"""
    sequence: Annotated[int, Range(-1)] = 1
    """sequence (context) parallelism: activations split along the sequence, for long inputs"""
    tensor: Annotated[int, Range(-1)] = 1
    """tensor parallelism: heads, feed-forward layers and vocabulary split across devices (Megatron)"""

    def __post_init__(self):
        check_fields(self)  # 0 is refused by `make_mesh`


@dataclasses.dataclass(frozen=True)
class Spikes:
    """What to do when the loss suddenly rises: return to an earlier checkpoint and leave out the batches since then.

    As in the training of PaLM (Chowdhery et al. 2022, §5.1), which went back about 100 steps and left out 200–500
    batches. The step number and the learning rate go on behind the spike.
    """

    threshold: NonNegative = 0.0
    """a loss is a spike if it exceeds the mean of those before it by this many standard deviations (0: none is)"""
    window: Annotated[int, Range(2)] = 100
    """number of losses before a step whose mean and standard deviation count"""
    rewind: Count = 100
    """a checkpoint is saved every so many steps, and a spike returns to the last one at least this many steps before
    it"""

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Eval:
    """A named evaluation: a split of the experiment's data, scored by its objective, unless given here."""

    name: str
    """name under which its metrics are logged"""
    split: Literal["train", "validation", "test"]
    """split of the data"""
    max_batches: Count | None = None
    """evaluate at most this many batches (None: the whole split)"""
    final_only: bool = False
    """run at the end of training only, as a test set should"""
    objective: Any = None
    """score by this objective, so that runs with different ones compare; None: the experiment's own"""
    data: Any = None
    """score on this data, such as one part of a mixture or another domain; None: the experiment's own"""
    decode: Any = None
    """how to generate the texts that a generation task scores (a Decoding); None: no text is generated"""

    def __post_init__(self):
        check_fields(self)
        if not self.name:
            raise UserError("Eval: name='' must not be empty")


VALIDATION = Eval("validation", "validation")
TEST = Eval("test", "test", final_only=True)


RESERVED = {"cache": "prepared data and compiled programs", "report": "reports"}
"""names of folders beside those of runs"""
Trainable = Literal["all", "head", "bias", "adapter"]
NonFinite = Literal["stop", "skip", "roll_back"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run depends on: model + objective + data + optimiser + mesh.

    Give either `steps` or `epochs`. A run keeps the number of steps that its epochs amount to.
    """

    name: str
    """name of the run, and of its folder under --workdir"""
    model: Any
    """architecture: a config whose make(dtype) returns a flax module; None: that of init_from"""
    objective: Any
    """objective: a config whose make(vocab) returns the functions prepare, loss and predict"""
    data: Any
    """training data: a config whose make(request) returns one batch per step"""
    optim: Any
    """optimiser: a config whose make(steps) returns an optax transformation and its learning-rate schedule"""
    steps: Count | None = None
    """number of optimiser steps; None: given by epochs"""
    batch_size: Count = 32
    """sequences per step, over all devices and microbatches"""
    epochs: Positive | None = None
    """passes over the training data, in place of steps; None: given by steps"""
    microbatches: Count = 1
    """gradient accumulation: split each batch into this many to save memory; the result is the same"""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """type of activations and matmul inputs; parameters, optimiser, softmax, norms and losses stay float32. On CPUs
    bfloat16 applies to matmul inputs only, and to none if the CPU has no instructions for it"""
    mesh: Mesh = dataclasses.field(default=Mesh(), metadata=_OPERATIONAL)
    """layout of the devices"""
    evals: tuple[Eval, ...] = dataclasses.field(default=(VALIDATION,), metadata=_OPERATIONAL)
    """named evaluations"""
    baselines: tuple[Any, ...] = dataclasses.field(default=(), metadata=_OPERATIONAL)
    """predictors without a network, scored on the same held-out data for comparison"""
    init_from: str | None = None
    """start from these weights: a run under the same --workdir by name, or the path of a run, a converted model or a
    Hugging Face directory"""
    init_layers: tuple[Natural, ...] = ()
    """take only these layers of init_from, from 0, in this order: a student with every second layer of its teacher
    (Sanh et al. 2019) has 0 2 4; (): all of them"""
    reinitialize: tuple[str, ...] = ()
    """prefixes of parameter names that are initialised anew although init_from has them, such as a head for other
    labels"""
    trainable: Trainable = "all"
    """which parameters are trained: all; only new ones (head); those and biases (bias: BitFit, Ben Zaken et al. 2022);
    those, adapters and norms (adapter: Houlsby et al. 2019). All others stay unchanged, bit for bit"""
    lora: Any = None
    """train low-rank matrices (a bertgpt.adaptation.lora.Lora) and heads in place of the kernels; None: no LoRA"""
    spikes: Spikes = Spikes()
    """when the loss is too high, and what follows"""
    seed: Seed = 0
    """determines initial weights, data order, masking and dropout"""
    log_every: Count = dataclasses.field(default=50, metadata=_OPERATIONAL)
    """steps between log lines"""
    eval_every: Natural = dataclasses.field(default=0, metadata=_OPERATIONAL)
    """steps between evaluations (0: at the end only)"""
    save_every: Natural = dataclasses.field(default=0, metadata=_OPERATIONAL)
    """steps between checkpoints (0: none by steps)"""
    save_every_minutes: NonNegative = dataclasses.field(default=10.0, metadata=_OPERATIONAL)
    """minutes between checkpoints, besides those of save_every and the one at the end (0: none by time)"""
    keep_last: Count = dataclasses.field(default=2, metadata=_OPERATIONAL)
    """how many of the newest checkpoints to keep: with two, a damaged one has a predecessor to go on from"""
    keep_best: Natural = dataclasses.field(default=0, metadata=_OPERATIONAL)
    """how many of the best checkpoints to keep besides"""
    best_metric: str = dataclasses.field(default="validation/loss", metadata=_OPERATIONAL)
    """EVALUATION/METRIC that ranks checkpoints for keep_best"""
    best_mode: Literal["min", "max"] = dataclasses.field(default="min", metadata=_OPERATIONAL)
    """whether the lowest or the highest best_metric is best"""
    nonfinite: NonFinite = dataclasses.field(default="stop", metadata=_OPERATIONAL)
    """what to do when the loss or the gradient of a step is not finite: stop; skip the step's update; or roll_back to
    the last checkpoint and continue with the batches after that step. Such a state is never saved"""

    def __post_init__(self):
        check_fields(self)
        for field, kind in (("model", ModelConfig), ("objective", ObjectiveConfig), ("data", DataConfig)):
            part = vars(self)[field]
            if part is not None and not isinstance(part, kind):
                raise UserError(f"{field}={shown(part)} must be a {kind.__name__}")
        for field in ("optim", "lora"):
            part = vars(self)[field]
            if part is not None and not dataclasses.is_dataclass(part):
                raise UserError(f"{field}={shown(part)} must be a config")
        names = [item.name for item in self.evals]
        if len(set(names)) < len(names):
            raise UserError(f"evals={names} must have different names")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UserError(
                f"name={self.name!r} must consist of letters, digits, '_', '-' and '.', because it names a folder"
            )
        if self.name.lower() in RESERVED:
            raise UserError(f"name={self.name!r} is the folder of {RESERVED[self.name.lower()]} under --workdir")
        if self.init_layers and self.init_from is None:
            raise UserError(f"init_layers={self.init_layers} needs init_from, whose layers it names")
        if self.reinitialize and self.init_from is None:
            raise UserError(f"reinitialize={self.reinitialize} needs init_from, whose parameters it leaves out")
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"steps={self.steps} and epochs={self.epochs} are both given; set one of them to None (--steps None)"
            )
        if self.steps is None and self.epochs is None:
            raise UserError("neither steps nor epochs is given; set one of them")
        if self.batch_size % self.microbatches:
            raise UserError(f"batch_size={self.batch_size} is not divisible by microbatches={self.microbatches}")


def is_operational(path: str) -> bool:
    """Whether a dotted path lies in an operational field of `Experiment`: one that does not change what is computed."""
    return path.split(".")[0] in OPERATIONAL


OPERATIONAL = tuple(field.name for field in dataclasses.fields(Experiment) if field.metadata.get("operational"))
"""Names of the operational fields."""


def missing_part(experiment: Experiment) -> str | None:
    """The first component that training needs and an experiment lacks; None if it lacks none."""
    return next((part for part in ("objective", "data", "optim") if vars(experiment)[part] is None), None)


def with_steps(experiment: Experiment, steps_per_epoch: int) -> Experiment:
    """The experiment with `epochs` converted to `steps`, rounded up; unchanged where it has steps already."""
    if experiment.epochs is None:
        return experiment
    steps = max(1, math.ceil(experiment.epochs * steps_per_epoch - 1e-9))
    return dataclasses.replace(experiment, steps=steps, epochs=None)


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (dotted path, value) of every leaf, in field order; a component also yields its type as `path.type`."""
    if dataclasses.is_dataclass(config):
        if prefix:
            yield prefix + "type", type_name(type(config))
        for name, value in _fields(config).items():
            yield from leaves(value, f"{prefix}{name}.")
    elif isinstance(config, tuple) and any(dataclasses.is_dataclass(item) for item in config):
        for i, item in enumerate(config):
            yield from leaves(item, f"{prefix}{i}.")
    else:
        yield prefix[:-1], config


def _fields(config: object) -> dict[str, object]:
    """Field name → value of a dataclass; {} of anything else."""
    if not dataclasses.is_dataclass(config):
        return {}
    values = vars(config)
    return {field.name: values[field.name] for field in dataclasses.fields(config)}


def type_name(cls: type) -> str:
    """`module:Class`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def with_overrides(config: Config, overrides: Mapping[str, object]) -> Config:
    """Replaces the leaves at these dotted paths, all at once: only the result has to be valid.

    Args:
      config: an experiment or one of its components.
      overrides: dotted path → new value.

    Returns:
      The new config.

    Raises:
      UserError: a path does not exist; the message names the closest one that does.

    Examples:
      >>> with_overrides(Mesh(), {"fsdp": 4})
      Mesh(dcn=1, data=-1, fsdp=4, expert=1, sequence=1, tensor=1)
    """
    return _replace(config, {tuple(path.split(".")): value for path, value in overrides.items()}, (), config)


def _replace(
    config: object, overrides: Mapping[tuple[str, ...], object], prefix: tuple[str, ...], root: object
) -> object:
    if () in overrides:
        return overrides[()]
    children: dict[str, dict[tuple[str, ...], object]] = {}
    for (name, *rest), value in overrides.items():
        children.setdefault(name, {})[tuple(rest)] = value
    if isinstance(config, tuple):
        members = {str(i): item for i, item in enumerate(config)}
    else:
        members = _fields(config)
    for name, inner in children.items():
        if name not in members:
            path = ".".join((*prefix, name, *next(iter(inner))))
            near = difflib.get_close_matches(path, [leaf for leaf, _ in leaves(root)], n=1)
            raise UserError(f"no field {path!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    changed = {name: _replace(members[name], inner, (*prefix, name), root) for name, inner in children.items()}
    return tuple((members | changed).values()) if isinstance(config, tuple) else dataclasses.replace(config, **changed)


def scanned(config: Config) -> Config:
    """A model's config with `scan` on: every stack is one block in a loop, of the same parameters; compiles faster."""
    paths = [path for path, _ in leaves(config) if path.rpartition(".")[2] == "scan"]
    return with_overrides(config, dict.fromkeys(paths, True))


def arms(base: Experiment, deltas: Mapping[str, Mapping[str, object]]) -> dict[str, Experiment]:
    """The arms of an ablation: `base` with the given leaves replaced, named `<base>.<arm>`."""
    return {arm: with_overrides(base, {"name": f"{base.name}.{arm}", **delta}) for arm, delta in deltas.items()}


def with_seeds(experiments: Mapping[str, Experiment], seeds: Sequence[int]) -> dict[str, Experiment]:
    """Every arm with every seed, named `<arm>.<seed>`; an arm that starts from another one starts from its seed."""
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
    """Fills in what only the data knows, such as labels.

    A run keeps the result, so that it can be used without its data.
    """
    data = experiment.data.infer()
    evals = []
    for item in experiment.evals:
        own = None if item.data is None else item.data.infer(data)
        objective = None if item.objective is None else item.objective.infer(own or data)
        evals.append(dataclasses.replace(item, data=own, objective=objective))
    return dataclasses.replace(experiment, data=data, objective=experiment.objective.infer(data), evals=tuple(evals))


def diff(a: object, b: object) -> dict[str, tuple[object, object]]:
    """Dotted path → (value in a, value in b), for every leaf that differs; a leaf that one side lacks is '<absent>'."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return {
        path: (left.get(path, "<absent>"), right.get(path, "<absent>"))
        for path in [*left, *(p for p in right if p not in left)]
        if path not in left or path not in right or left[path] != right[path]
    }


def fingerprint(config: object) -> str:
    """A short digest of every leaf outside operational fields: equal if runs compute the same."""
    kept = [(path, value) for path, value in leaves(config) if not is_operational(path)]
    return hashlib.sha256(json.dumps(kept, default=list).encode()).hexdigest()[:16]


def to_json(config: object) -> object:
    """A config as JSON values; each component has its type as `"type": "module:Class"`."""
    if dataclasses.is_dataclass(config):
        fields = {name: to_json(value) for name, value in _fields(config).items()}
        return {"type": type_name(type(config)), **fields}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    if isinstance(config, float) and not math.isfinite(config):
        raise UserError(f"a config contains {config}, which JSON cannot represent")
    return config


def from_json(value: object) -> Any:
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
        if module not in sys.modules and not re.fullmatch(r"bertgpt(\.[A-Za-z][A-Za-z0-9_]*)+", module):
            raise ImportError(f"{module} is not part of bertgpt; import it first")
        cls = vars(importlib.import_module(module)).get(name)
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise ImportError("not a dataclass")
        return cls(**fields)
    except UserError:
        raise
    except (ImportError, AttributeError, TypeError, ValueError, KeyError) as error:
        shown = " ".join(repr(value.get("type")).split())[:80]
        raise UserError(f"cannot rebuild {shown} from its JSON: {' '.join(str(error).split())[:300]}") from None
