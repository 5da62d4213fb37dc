"""Mapping of checkpoints between the Hugging Face format (source) and this package (target).

The tables of a family say which tensor of the source becomes which parameter of the target, and in which layout. If
the parameter stacks layers or experts, the name of the tensor contains {l} or {e}. Import and export use the same
tables, so that they cannot diverge.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import numpy as np

from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.types import JsonObject, Params, UserError

Tensors = dict[str, np.ndarray]
Arrays = np.ndarray | tuple[np.ndarray, ...]
"""One parameter, or several that one tensor holds"""
ConvertibleConfig = BertConfig | GptConfig | T5Config
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

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the parameters."""
        return self.target if isinstance(self.target, tuple) else (self.target,)


class Report(TypedDict):
    """What became of the tensors of an imported checkpoint, by name."""

    loaded: list[str]
    """tensors that were read"""
    initialised: list[str]
    """parameters of an optional head that the checkpoint lacks"""
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
    read_config: Callable[["Settings", str | None], Config]
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
    skipped: tuple[str, ...] = ()
    """endings of names that hold no parameter"""
    optional: tuple[str, ...] = ()
    """heads that a checkpoint may lack although its architecture has them"""


Meaning = TypeVar("Meaning")


class Settings:
    """A config.json all of whose fields must be read: an unread field is an error, because it may change the model."""

    # Bookkeeping, generation defaults and labels, which do not affect what the network computes.
    HARMLESS = set(
        """_name_or_path _num_labels add_router_probs architectures bad_words_ids begin_suppress_tokens bos_token_id
        chunk_size_feed_forward decoder_start_token_id directionality diversity_penalty do_sample dtype early_stopping
        encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
        forced_eos_token_id gradient_checkpointing id2label initializer_range initializer_factor label2id language
        length_penalty max_length min_length model_type name n_ctx n_positions no_repeat_ngram_size num_beam_groups
        num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores
        pad_token_id pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
        prefix problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
        router_aux_loss_coef router_z_loss_coef sep_token_id suppress_tokens summary_activation summary_first_dropout
        summary_last_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params temperature
        tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
        typical_p use_bfloat16 use_cache cls_token_id mask_token_id unk_token_id down_scale_factor gap_size
        net_structure_type num_memory_blocks embedding_type""".split()
    )

    def __init__(self, values: JsonObject, file: str):
        self.values, self.file = values, file
        self.used: set[str] = set()

    def __call__(self, key: str, *, kind: type | tuple[type, ...] = int, default: Any = ...) -> Any:
        """The value of a key.

        Raises:
          UserError: it is missing and has no default, or is of another type.
        """
        self.used.add(key)
        if key not in self.values:
            if default is ...:
                raise UserError(f"{self.file}: has no field {key!r}")
            return default
        value = self.values[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise UserError(f"{self.file}: {key}={value!r} must be {names}")
        return value

    def one_of(self, key: str, known: Mapping[str, Meaning], *, default: Any = ...) -> Meaning:
        """The meaning of a key that must have one of the known values. Errors: UserError."""
        value = self(key, kind=str, default=default)
        if value not in known:
            raise UserError(f"{self.file}: {key}={value!r} is not supported; only {', '.join(known)}")
        return known[value]

    def must_be(self, key: str, *allowed: object) -> None:
        """Raises UserError if a key is present with a value other than these."""
        self.used.add(key)
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise UserError(f"{self.file}: {key}={value!r} is not supported; only {', '.join(map(repr, allowed))}")

    def finish(self) -> None:
        """Raises UserError if a key was not read and is not known to be harmless."""
        for key in sorted(self.values.keys() - self.used - self.HARMLESS):
            raise UserError(
                f"{self.file}: unknown field {key}={self.values[key]!r}; if it does not change the model, remove it"
            )


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
    family: Family[Config], config: Config, heads: Sequence[str], tensors: Tensors, where: str
) -> tuple[Params, Report]:
    """Converts source tensors to parameters.

    Args:
      family: gives the tables.
      config: the model config.
      heads: heads of the architecture.
      tensors: tensors of the source, by name.
      where: what to call the source in messages.

    Returns:
      The parameters, and a report on the tensors.

    Raises:
      UserError: a tensor of the body or of a required head is missing, has a wrong shape, or tied tensors differ.
    """
    used: set[str] = set()

    def find(name: str) -> str | None:
        return next((n for n in (family.prefix + name, name) if n in tensors), None)

    def read(name: str, fallback: str | None = None) -> np.ndarray:
        found = find(name) or (find(fallback) if fallback else None)
        if found is None:
            raise UserError(f"{where}: has no tensor {name}, which config.json requires")
        used.add(found)
        return tensors[found]

    def read_layer(entry: ParamMap, layer: int | None) -> tuple[np.ndarray, ...]:
        if entry.experts is None:
            value = entry.layout.load(read(entry.source.format(l=layer), entry.fallback), config.num_heads)
            return value if isinstance(value, tuple) else (value,)
        names = (entry.source.format(l=layer, e=e) for e in range(entry.experts))
        return (np.stack([entry.layout.load(read(name), config.num_heads) for name in names]),)

    params: Params = {}
    table = family.heads(config)
    missing = [h for h in heads if h in family.optional and find(table[h][0].source) is None]
    for entry in param_maps(family, config, [h for h in heads if h not in missing]):
        try:
            if entry.layers is None:
                values = read_layer(entry, None)
            else:
                layers = [read_layer(entry, layer) for layer in entry.layers]
                values = [np.stack(parts) for parts in zip(*layers, strict=True)]
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where}: tensor {entry.source} has a shape that contradicts config.json: {error}"
            ) from None
        for path, value in zip(entry.paths, values, strict=True):
            put(params, path, np.ascontiguousarray(value, np.float32))
    for name, twin in family.tied.items():
        copy, original = find(name), find(twin)
        if copy is not None and original is not None:
            if not np.array_equal(tensors[copy], tensors[original]):
                raise UserError(f"{where}: {copy} differs from {original}; the model ties the two")
            used.add(copy)
    initialised = [path for head in missing for entry in table[head] for path in entry.paths]
    unused = [n for n in tensors if n not in used and not n.endswith(family.skipped or ("\0",))]
    return params, Report(loaded=sorted(used), initialised=initialised, unused=unused)


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
                tensors[name] = np.ascontiguousarray(entry.layout.dump(value, config.num_heads))
    return tensors
