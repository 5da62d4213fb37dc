"""How a family's tensors map to ours, and the mapping itself.

A row says: this tensor there is that parameter here, in this layout. Where our parameter stacks layers or experts, the
name there has {l} or {e} in it. Reading and writing walk the same rows, so that they cannot drift apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.types import UserError

Tensors = dict[str, np.ndarray]


class Layout(NamedTuple):
    """load(theirs, heads) → ours, and its inverse; several arrays of ours are a tuple."""

    load: Callable[[np.ndarray, int], Any]
    dump: Callable[[Any, int], np.ndarray]


COPY = Layout(lambda x, h: x, lambda x, h: x)
# torch keeps a linear layer's matrix as [out, in].
LINEAR = Layout(lambda x, h: x.T, lambda x, h: x.T)
# Query, key and value with an axis of heads.
HEADS = Layout(lambda x, h: x.T.reshape(x.shape[1], h, -1), lambda x, h: x.reshape(x.shape[0], -1).T)
HEADS_BIAS = Layout(lambda x, h: x.reshape(h, -1), lambda x, h: x.reshape(-1))
# GPT-2 keeps [in, out], with query, key and value side by side.
FUSED_HEADS = Layout(
    lambda x, h: tuple(p.reshape(x.shape[0], h, -1) for p in np.split(x, 3, axis=1)),
    lambda parts, h: np.concatenate([p.reshape(p.shape[0], -1) for p in parts], axis=1),
)
FUSED_HEADS_BIAS = Layout(
    lambda x, h: tuple(p.reshape(h, -1) for p in np.split(x, 3)),
    lambda parts, h: np.concatenate([p.reshape(-1) for p in parts]),
)


class Row(NamedTuple):
    """One line of a family's table."""

    ours: str | tuple[str, ...]
    """path(s) of the parameter, e.g. encoder/mlp/up/kernel"""
    theirs: str
    """tensor name, without the prefix of the base model"""
    layout: Layout = COPY
    layers: Sequence[int] | None = None
    """numbers that {l} takes, in the order in which ours stacks them"""
    experts: int | None = None
    """{e} takes 0 … experts − 1"""
    prefixed: bool = True
    """whether a model with a head puts the base model's prefix before the name"""
    or_else: str | None = None
    """tensor to take where there is none of this name"""


class Family(NamedTuple):
    """All that is particular to one `model_type`."""

    model_type: str
    prefix: str
    """what models with a head put before the names of the base model"""
    read_config: Callable[["Settings", str | None], Any]
    """(config.json, architecture) → our model config"""
    write_config: Callable[[Any], dict[str, Any]]
    """our model config → the content of config.json, as far as it concerns the model"""
    body: Callable[[Any], list[Row]]
    """rows that every model of the family has"""
    heads: Callable[[Any], dict[str, list[Row]]]
    """rows of each head, by name"""
    architectures: Mapping[str, tuple[str, ...]]
    """architecture → the heads it has; the first is the base model"""
    tied: Mapping[str, str] = {}
    """tensors that must equal another and are not kept"""
    skipped: tuple[str, ...] = ()
    """endings of names that hold no parameter"""
    optional: tuple[str, ...] = ()
    """heads that a checkpoint may lack, though the architecture has them"""


class Settings:
    """A config.json that must be used up: whatever nobody asked for is an error, for it may change the model."""

    # Bookkeeping, generation defaults and labels: nothing that the network computes depends on them.
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

    def __init__(self, values: dict[str, Any], file: str):
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

    def one_of(self, key: str, known: Mapping[str, Any], *, default: Any = ...) -> Any:
        """The value of a key that has few meanings here."""
        value = self(key, kind=str, default=default)
        if value not in known:
            raise UserError(f"{self.file}: {key}={value!r} is not supported; only {', '.join(known)}")
        return known[value]

    def must_be(self, key: str, *allowed: Any) -> None:
        """Checks a key that, if there at all, may only have these values."""
        self.used.add(key)
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise UserError(f"{self.file}: {key}={value!r} is not supported; only {', '.join(map(repr, allowed))}")

    def finish(self) -> None:
        """Raises UserError if a key was not asked for and is not known to be harmless."""
        for key in sorted(self.values.keys() - self.used - self.HARMLESS):
            raise UserError(
                f"{self.file}: unknown field {key}={self.values[key]!r}; if it does not change the model, remove it"
            )


def rows_of(family: Family, config: Any, heads: Sequence[str]) -> list[Row]:
    """The table of a model with these heads."""
    table = family.heads(config)
    return [*family.body(config), *(row for head in heads for row in table[head])]


def put(tree: dict, path: str, value: np.ndarray) -> None:
    *inner, last = path.split("/")
    for name in inner:
        tree = tree.setdefault(name, {})
    tree[last] = value


def get(tree: dict, path: str) -> np.ndarray | None:
    for name in path.split("/"):
        if name not in tree:
            return None
        tree = tree[name]
    return np.asarray(tree)


def has_head(family: Family, config: Any, params: dict, head: str) -> bool:
    """Whether our parameters hold all of this head."""
    rows = family.heads(config)[head]
    return all(get(params, path) is not None for row in rows for path in paths(row))


def paths(row: Row) -> tuple[str, ...]:
    return row.ours if isinstance(row.ours, tuple) else (row.ours,)


def load_tensors(
    family: Family, config: Any, heads: Sequence[str], num_heads: int, tensors: Tensors, where: str
) -> tuple[dict, dict[str, list[str]]]:
    """Their tensors → our parameters, and a report of names: loaded, initialised (not there), unused (not needed).

    Raises:
      UserError: a tensor of the body or of the architecture's head is missing, or tied tensors differ.
    """
    used: set[str] = set()

    def find(name: str) -> str | None:
        return next((n for n in (family.prefix + name, name) if n in tensors), None)

    def take(name: str, or_else: str | None) -> np.ndarray:
        found = find(name) or (find(or_else) if or_else else None)
        if found is None:
            raise UserError(f"{where}: has no tensor {name}, which config.json asks for")
        used.add(found)
        return tensors[found]

    params: dict = {}
    initialised = []
    table = family.heads(config)
    missing = [h for h in heads if h in family.optional and find(table[h][0].theirs) is None]
    for row in rows_of(family, config, [h for h in heads if h not in missing]):

        def one(layer: int | None, row: Row = row) -> Any:
            if row.experts is None:
                return row.layout.load(take(row.theirs.format(l=layer), row.or_else), num_heads)
            names = (row.theirs.format(l=layer, e=e) for e in range(row.experts))
            return np.stack([row.layout.load(take(name, None), num_heads) for name in names])

        try:
            pieces = [one(None)] if row.layers is None else [one(layer) for layer in row.layers]
            joined = [np.stack(p) if row.layers is not None else p[0] for p in _by_path(pieces)]
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{where}: tensor {row.theirs} has a shape that config.json does not allow: {error}"
            ) from None
        for path, value in zip(paths(row), joined, strict=True):
            put(params, path, np.ascontiguousarray(value, np.float32))
    for head in missing:
        initialised += [path for row in table[head] for path in paths(row)]
    for name, twin in family.tied.items():
        here, there = find(name), find(twin)
        if here is not None and there is not None:
            if not np.array_equal(tensors[here], tensors[there]):
                raise UserError(f"{where}: {here} differs from {there}; here the two are one matrix")
            used.add(here)
    unused = [n for n in tensors if n not in used and not n.endswith(family.skipped or ("\0",))]
    return params, {"loaded": sorted(used), "initialised": initialised, "unused": unused}


def _by_path(pieces: list[Any]) -> list[tuple]:
    """Per layer a value, or a tuple of one for each path → for each path, its values over layers."""
    return list(zip(*(p if isinstance(p, tuple) else (p,) for p in pieces), strict=True))


def dump_tensors(
    family: Family, config: Any, heads: Sequence[str], num_heads: int, params: dict, base: bool
) -> Tensors:
    """Our parameters → their tensors; the inverse of `load_tensors`."""
    tensors: Tensors = {}
    for row in rows_of(family, config, heads):
        values = [get(params, path) for path in paths(row)]
        for path, value in zip(paths(row), values, strict=True):
            if value is None:
                raise UserError(f"the parameters have no {path}")

        def write(layer: int | None, parts: list[np.ndarray], row: Row = row) -> None:
            prefix = family.prefix if row.prefixed and not base else ""
            for e in range(row.experts or 1):
                chosen = [p[e] for p in parts] if row.experts is not None else parts
                value = chosen[0] if isinstance(row.ours, str) else tuple(chosen)
                name = prefix + row.theirs.format(l=layer, e=e)
                tensors[name] = np.ascontiguousarray(row.layout.dump(value, num_heads))

        for i, layer in enumerate([None] if row.layers is None else row.layers):
            write(layer, values if row.layers is None else [v[i] for v in values])
    return tensors
