"""Mapping of checkpoints between the Hugging Face format (source) and this package (target).

The tables of a family say which tensor of the source becomes which parameter of the target, and in which layout. If
the parameter stacks layers or experts, the name of the tensor contains {l} or {e}. Import and export use the same
tables, so that they cannot diverge.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypedDict, TypeVar

import numpy as np

from bertgpt.convert.defaults import DEFAULTS, SYNONYMS
from bertgpt.convert.settings import Settings
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.clip import ClipConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vit import VitConfig
from bertgpt.types import JsonObject, Params, UserError

Tensors = dict[str, np.ndarray]
Arrays = np.ndarray | tuple[np.ndarray, ...]
"""One parameter, or several that one tensor holds"""
ConvertibleConfig = BertConfig | GptConfig | T5Config | VitConfig | ClipConfig | CaptionerConfig
Config = TypeVar("Config", bound=ConvertibleConfig)


class Layout(NamedTuple):
    """How the array of a source tensor is arranged: load(tensor, heads) → parameters, and its inverse."""

    load: Callable[[np.ndarray, int], Arrays]
    dump: Callable[[Arrays, int], np.ndarray]


COPY = Layout(lambda x, h: x, lambda x, h: x)
# torch stores the matrix of a linear layer as [out, in].
LINEAR = Layout(lambda x, h: x.T, lambda x, h: x.T)
# Query, key and value have an axis of heads in the target.
HEADS = Layout(lambda x, h: x.T.reshape(x.shape[1], h, -1), lambda x, h: x.reshape(x.shape[0], -1).T)
HEADS_BIAS = Layout(lambda x, h: x.reshape(h, -1), lambda x, h: x.reshape(-1))
# GPT-2 stores [in, out], with query, key and value concatenated.
FUSED_HEADS = Layout(
    lambda x, h: tuple(p.reshape(x.shape[0], h, -1) for p in np.split(x, 3, axis=1)),
    lambda parts, h: np.concatenate([p.reshape(p.shape[0], -1) for p in parts], axis=1),
)
FUSED_HEADS_BIAS = Layout(
    lambda x, h: tuple(p.reshape(h, -1) for p in np.split(x, 3)),
    lambda parts, h: np.concatenate([p.reshape(-1) for p in parts]),
)


class ParamMap(NamedTuple):
    """One entry of a family's table: a source tensor and the parameters it becomes."""

    target: str | tuple[str, ...]
    """path(s) of the parameter(s), e.g. encoder/mlp/up/kernel"""
    source: str
    """name of the tensor, without the prefix of the base model"""
    layout: Layout = COPY
    layers: Sequence[int] | None = None
    """values of {l}, in the order in which the parameter stacks them"""
    experts: int | None = None
    """{e} runs over 0 … experts − 1"""
    prefixed: bool = True
    """whether models with a head add the prefix of the base model to the name"""
    fallback: str | None = None
    """tensor to read if there is none of this name"""
    heads: int | None = None
    """attention heads of its part of a composed model; None: the config's `num_heads`"""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the parameters."""
        return self.target if isinstance(self.target, tuple) else (self.target,)


class Report(TypedDict):
    """What became of the tensors of an imported checkpoint, by name."""

    loaded: list[str]
    """tensors that were read"""
    initialised: list[str]
    """parameters of an optional head that the checkpoint lacks, so that the model has none"""
    unused: list[str]
    """tensors that the model does not need"""


@dataclasses.dataclass(frozen=True)
class Family(Generic[Config]):
    """The tables of one `model_type`."""

    model_type: str
    prefix: str
    """what models with a head put before the tensor names of the base model"""
    config_class: type[Config]
    """class of the model config"""
    represents: Callable[[Config], bool]
    """whether a directory of this family can hold a model of this config"""
    read_config: Callable[[Settings, str], Config]
    """(config.json, architecture) → model config"""
    write_config: Callable[[Config], JsonObject]
    """model config → the fields of config.json that describe the model"""
    body: Callable[[Config], list[ParamMap]]
    """parameters that every model of the family has"""
    heads: Callable[[Config], dict[str, list[ParamMap]]]
    """parameters of each head, by name"""
    architectures: Mapping[str, tuple[str, ...]]
    """architecture → its heads; the first is the base model"""
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """tensor → the tensor that it must equal, which is read instead"""
    tied_output: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """the same of the output layer, in models that predict tokens"""
    skipped: tuple[str, ...] = ()
    """endings of names that hold no parameter"""
    optional: tuple[str, ...] = ()
    """heads that the base model may lack"""
    text: str | None = None
    """of composed models, the field of config.json with the part that reads texts: vocabulary and special tokens"""

    def settings(self, values: JsonObject, file: str) -> Settings:
        """The fields of a config.json of this family, which messages call `file`. Errors: as `Settings`."""
        return Settings(values, file, DEFAULTS[self.model_type], SYNONYMS.get(self.model_type, {}))

    @property
    def base(self) -> str:
        """The architecture without a head, whose tensor names have no prefix."""
        return next(iter(self.architectures))


def param_maps(family: Family[Config], config: Config, heads: Sequence[str]) -> list[ParamMap]:
    """The table of a model with these heads."""
    table = family.heads(config)
    return [*family.body(config), *(entry for head in heads for entry in table[head])]


def put(tree: Params, path: str, value: np.ndarray) -> None:
    """Adds a parameter to a tree."""
    *inner, last = path.split("/")
    for name in inner:
        tree = tree.setdefault(name, {})
    tree[last] = value


def get(tree: Params, path: str) -> np.ndarray | None:
    """The parameter at a path, None if there is none."""
    for name in path.split("/"):
        if name not in tree:
            return None
        tree = tree[name]
    return np.asarray(tree)


def has_head(family: Family[Config], config: Config, params: Params, head: str) -> bool:
    """Whether the parameters include all of this head."""
    return all(get(params, path) is not None for entry in family.heads(config)[head] for path in entry.paths)


def load_tensors(
    family: Family[Config], config: Config, architecture: str, tensors: Tensors, where: str
) -> tuple[Params, Report]:
    """Converts source tensors to parameters.

    Args:
      family: gives the tables.
      config: the model config.
      architecture: which heads to read.
      tensors: tensors of the source, by name.
      where: what to call the source in messages.

    Returns:
      The parameters, and a report on the tensors.

    Raises:
      UserError: a tensor of the body or of a required head is missing, is not of floating point, holds a value that is
        not finite, has a wrong shape, or tied tensors differ.
    """
    heads, used = family.architectures[architecture], set[str]()
    predicts = bool({"mlm", "lm"} & set(heads))
    tied = {**family.tied, **(family.tied_output if predicts else {})}
    twins = {original: [n for n in tied if tied[n] == original] for original in tied.values()}

    def find(name: str) -> str | None:
        # Whoever saves shared tensors once may keep another name than the original's.
        names = [n for twin in (name, *twins.get(name, ())) for n in (family.prefix + twin, twin)]
        return next((n for n in names if n in tensors), None)

    def read(name: str, fallback: str | None = None) -> np.ndarray:
        found = find(name) or (find(fallback) if fallback else None)
        if found is None:
            raise UserError(f"{where}: has no tensor {name}, which config.json requires")
        if found not in used:
            check_values(found, tensors[found], where)
            used.add(found)
        return tensors[found]

    def read_layer(entry: ParamMap, layer: int | None) -> tuple[np.ndarray, ...]:
        num_heads = entry.heads or config.num_heads
        if entry.experts is None:
            value = entry.layout.load(read(entry.source.format(l=layer), entry.fallback), num_heads)
            return value if isinstance(value, tuple) else (value,)
        names = (entry.source.format(l=layer, e=e) for e in range(entry.experts))
        return (np.stack([entry.layout.load(read(name), num_heads) for name in names]),)

    params: Params = {}
    table = family.heads(config)
    optional = family.optional if architecture == family.base else ()
    missing = [h for h in heads if h in optional and find(table[h][0].source) is None]
    for entry in param_maps(family, config, [h for h in heads if h not in missing]):
        try:
            if entry.layers is None:
                values = read_layer(entry, None)
            else:
                layers = [read_layer(entry, layer) for layer in entry.layers]
                values = [np.stack(parts) for parts in zip(*layers, strict=True)]
        except (ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where}: tensor {entry.source} has a shape that contradicts config.json: {error}"
            ) from None
        for path, value in zip(entry.paths, values, strict=True):
            put(params, path, np.asarray(value, np.float32, order="C"))
    for name, twin in tied.items():
        copy, original = (next((n for n in (family.prefix + x, x) if n in tensors), None) for x in (name, twin))
        if copy is not None and original is not None and copy not in used:
            if not np.array_equal(tensors[copy], tensors[original]):
                raise UserError(f"{where}: {copy} differs from {original}; the model ties the two")
            used.add(copy)
    absent = [path for head in missing for entry in table[head] for path in entry.paths]
    unused = [n for n in tensors if n not in used and not n.endswith(family.skipped or ("\0",))]
    return params, Report(loaded=sorted(used), initialised=absent, unused=unused)


def check_values(name: str, value: np.ndarray, where: str) -> None:
    """Raises UserError if a weight is not of floating point or holds NaN or an infinity."""
    if not np.issubdtype(value.dtype, np.floating):
        kind = f"{value.dtype}, not floating point; quantised weights are not supported"
        raise UserError(f"{where}: tensor {name} holds {kind}")
    if not np.isfinite(value).all():
        raise UserError(f"{where}: tensor {name} holds a value that is not finite")


def dump_tensors(family: Family[Config], config: Config, heads: Sequence[str], params: Params, base: bool) -> Tensors:
    """Converts parameters to source tensors; the inverse of `load_tensors`.

    Args:
      family: gives the tables.
      config: the model config.
      heads: heads to write.
      params: the parameters.
      base: whether this is the base model, whose tensor names have no prefix.

    Raises:
      UserError: a parameter is missing.
    """
    tensors: Tensors = {}
    for entry in param_maps(family, config, heads):
        values = [get(params, path) for path in entry.paths]
        for path, value in zip(entry.paths, values, strict=True):
            if value is None:
                raise UserError(f"the parameters have no {path}")
        prefix = family.prefix if entry.prefixed and not base else ""
        for i, layer in enumerate([None] if entry.layers is None else entry.layers):
            parts = values if entry.layers is None else [value[i] for value in values]
            for e in range(entry.experts or 1):
                chosen = parts if entry.experts is None else [part[e] for part in parts]
                value = tuple(chosen) if isinstance(entry.target, tuple) else chosen[0]
                name = prefix + entry.source.format(l=layer, e=e)
                tensors[name] = np.asarray(entry.layout.dump(value, entry.heads or config.num_heads), order="C")
    return tensors
