"""One vector of a text: by the modules of a sentence-transformers folder, or as a bi-encoder was trained."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Bool, Float, Int
from tokenizers import normalizers

from bertgpt.convert.sentence_transformers import Dense, Embedder, LayerNorm, Mode, Module, Normalize, Pooling
from bertgpt.data.packing import template_of
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.model import Model
from bertgpt.layers.heads import in_segment
from bertgpt.layers.norm import layer_norm
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.multitask import OfTask
from bertgpt.objectives.similarity import BiEncode
from bertgpt.tasks.source import log_warnings, truncated
from bertgpt.types import UserError

# Pooler of a BERT → the Dense module that computes it from the state of [CLS].
POOLER_ACTIVATIONS = {"tanh": "Tanh", "dropout_tanh": "Tanh", "relu": "ReLU", "dropout_gelu": "GELU"}
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "Tanh": jnp.tanh, "Identity": lambda x: x, "ReLU": jax.nn.relu, "GELU": functools.partial(jax.nn.gelu,
    approximate=False), "Sigmoid": jax.nn.sigmoid, "SiLU": jax.nn.silu, "LeakyReLU": jax.nn.leaky_relu,
    "ELU": jax.nn.elu,
}  # fmt: skip
"""Classes of torch.nn with their default settings"""


def own_embedder(model: Model) -> Embedder | None:
    """How the model itself makes vectors: a sentence-transformers folder or a bi-encoder's run; None for others."""
    if model.embedder is not None or model.experiment is None:
        return model.embedder
    objective = model.experiment.objective
    objective = objective.objective if isinstance(objective, OfTask) else objective
    return bi_encoder(model) if isinstance(objective, BiEncode) else None


def bi_encoder(model: Model) -> Embedder:
    """The modules that compute what `BiEncode` was trained on: the model's pooled state, divided by its norm."""
    modules: list[Module] = [Pooling(("lasttoken",))]
    params: list[Mapping[str, np.ndarray]] = [{}]
    if isinstance(model.config, BertConfig):
        modules = [Pooling(("mean" if model.config.pooler == "mean" else "cls",))]
        if model.config.pooler in POOLER_ACTIVATIONS:
            modules.append(Dense(POOLER_ACTIVATIONS[model.config.pooler]))
            params.append({name: model.params["pooler"][name] for name in ("kernel", "bias")})
    return Embedder((*modules, Normalize()), (*params, {}), max_tokens=model.run.data.seq_len)


def longest_text(model: Model, embedder: Embedder) -> int:
    """How many tokens of a text are read, special tokens included."""
    return min(embedder.max_tokens or model.config.max_len, model.config.max_len)


def encode_texts(
    model: Model, embedder: Embedder, texts: Sequence[str], prompt: str, longest: int | None = None
) -> tuple[list[list[int]], int]:
    """Token ids of each text after the prompt, and how many of their first tokens belong to the prompt.

    Args:
      model: an encoder or decoder.
      embedder: says how texts are read and truncated.
      texts: texts.
      prompt: what to put before each text.
      longest: truncate to so many tokens; None: to what the model reads.

    Raises:
      UserError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.path}: has no tokenizer")
    tokenizer = model.tokenizer
    if embedder.parse_special:  # as transformers reads the same files
        tokenizer = _as_transformers(tokenizer, embedder.lowercase)
    before, after = tokenizer.template
    if model.experiment is not None:  # decoders' own tokenizers add nothing, but their data does
        frame = template_of(tokenizer.vocab)
        before, after = list(frame.start), [frame.end]
    limit = longest_text(model, embedder) if longest is None else longest

    def encode(rows: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode(list(rows), embedder.parse_special)
        return framed(found, before, after, limit, embedder.keep_end)

    skipped = 0
    if prompt:
        alone = encode([prompt])[0]
        skipped = len(alone) - (1 if alone and alone[-1] in _special(tokenizer) else 0)
    return encode([prompt + text for text in texts]), skipped


def framed(
    texts: Sequence[list[int]], before: Sequence[int], after: Sequence[int], limit: int, keep_end: bool = False
) -> list[list[int]]:
    """Texts between special tokens, truncated to `limit` tokens in all, which is logged.

    Args:
      texts: ids of each text.
      before: ids before a text.
      after: ids after it.
      limit: longest sequence.
      keep_end: whether longer texts lose their beginning rather than their end.
    """
    room = max(limit - len(before) - len(after), 0)
    log_warnings(truncated(sum(len(ids) > room for ids in texts), len(texts), "texts", limit))
    return [[*before, *(ids[max(len(ids) - room, 0) :] if keep_end else ids[:room]), *after] for ids in texts]


@functools.lru_cache(8)
def _as_transformers(tokenizer: Tokenizer, lowercase: bool) -> Tokenizer:
    """The tokenizer that its backend alone is, which lower-cases texts first if asked to."""
    if tokenizer.spiece is None and not lowercase:
        return tokenizer
    return Tokenizer(lowercased(tokenizer.backend) if lowercase else tokenizer.backend, tokenizer.roles)


def lowercased(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, which lower-cases texts before anything else."""
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    own = [] if copy.normalizer is None else [copy.normalizer]
    copy.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return copy


def _special(tokenizer: Tokenizer) -> set[int]:
    """Ids of special tokens."""
    added = tokenizer.backend.get_added_tokens_decoder()
    special = (i for i, token in added.items() if token.special or token.content in tokenizer.markers)
    return {*tokenizer.vocab.special, *special}


def run_modules(
    modules: Sequence[Module],
    params: Sequence[Mapping[str, Array | np.ndarray]],
    hidden: Float[Array, "B S D"],
    segment_ids: Int[Array, "B S"],
    skipped: int | Int[Array, "*any"],
    packed: int | None = None,
    positions: Int[Array, "B S"] | None = None,
) -> Float[Array, "B *N E"]:
    """The vector of each text, or of each of `packed` segments of a packed sequence.

    Args:
      modules: from an `Embedder`.
      params: their parameters.
      hidden: states of the tokens.
      segment_ids: 1 for tokens, or 1, 2, … by segment; 0 for padding.
      skipped: number of a text's first tokens that a Pooling leaves out if it excludes the prompt; of packed sequences
        for each token.
      packed: how many segments a sequence may have; None: it is one text.
      positions: position of each token in its text; None: its column.
    """
    values = {"token_embeddings": hidden.astype(jnp.float32)}
    position = jnp.arange(segment_ids.shape[1])[None] if positions is None else positions
    inside = (segment_ids > 0)[:, None] if packed is None else in_segment(segment_ids, packed)
    for module, own in zip(modules, params, strict=True):
        if isinstance(module, Pooling):
            counted = inside if module.include_prompt else inside & (position >= skipped)[:, None]
            states = values["token_embeddings"]
            pooled = jnp.concatenate([pool(mode, states, counted, position) for mode in module.modes], axis=-1)
            values["sentence_embedding"] = pooled[:, 0] if packed is None else pooled
        else:
            values[module.source] = _transform(module, own, values[module.source])
    return values["sentence_embedding"]


def _transform(module: Module, params: Mapping[str, Array | np.ndarray], x: Float[Array, "*N D"]) -> Array:
    if isinstance(module, Dense):
        y = ACTIVATIONS[module.activation](x @ params["kernel"] + params.get("bias", 0.0))
        if not module.residual:
            return y
        return y + (x @ params["residual"] if "residual" in params else x)
    if isinstance(module, LayerNorm):
        return layer_norm(x, params["scale"], params["bias"], eps=1e-5)
    return normalized(x)


def normalized(x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Vectors divided by their L2 norm."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def pool(
    mode: Mode, states: Float[Array, "B S D"], counted: Bool[Array, "B N S"], position: Int[Array, "#B S"]
) -> Float[Array, "B N D"]:
    """A vector from each set of counted tokens of each sequence; 0 (of cls: the first state) if a set is empty."""
    count = jnp.sum(counted, axis=-1, keepdims=True)
    if mode == "cls":
        return _state_at(states, jnp.argmax(counted, axis=-1))
    if mode == "lasttoken":
        last = jnp.max(jnp.where(counted, jnp.arange(counted.shape[-1]), 0), axis=-1)
        return jnp.where(count > 0, _state_at(states, last), 0.0)
    if mode == "max":
        highest = jnp.max(jnp.where(counted[..., None], states[:, None], -jnp.inf), axis=2)
        return jnp.where(count > 0, highest, 0.0)
    # Muennighoff 2022 weights a token by its position, from 1.
    weights = counted * (position[:, None] + 1.0) if mode == "weightedmean" else counted.astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-9)
    return jnp.einsum("bns,bsd->bnd", weights, states) / (jnp.sqrt(total) if mode == "mean_sqrt_len_tokens" else total)


def _state_at(states: Float[Array, "B S D"], index: Int[Array, "B N"]) -> Float[Array, "B N D"]:
    return jnp.take_along_axis(states, index[..., None], axis=1)
