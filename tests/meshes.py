"""Every family of models with its own objective, in tiny sizes, and the meshes that they are compared on."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import NamedSharding

from bertgpt.config import Mesh
from bertgpt.layers.moe import Experts
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.electra import ElectraConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.lm import CausalLM, PrefixLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.rtd import ReplacedTokenDetection
from bertgpt.objectives.seq2seq import ConditionalLM, Seq2Seq
from bertgpt.objectives.span import SpanCorruption
from bertgpt.sharding import make_mesh, put_batch, spec, state_shardings
from bertgpt.training.state import DROPOUT, NOISE, boxed_state, random_key
from bertgpt.training.step import loss_and_grads
from bertgpt.types import Batch, ModelConfig, ObjectiveConfig, Params, Vocab

VOCAB = Vocab(256, 0, 1, 2, 3, 4, 5, 6, sentinels=tuple(range(224, 256)))
ROWS, LENGTH = 16, 64
PROMPT = 32
"""tokens beside an image"""

BERT = BertConfig(vocab_size=256, d_model=32, num_layers=2, num_heads=4, d_ff=64, max_len=LENGTH)
GPT = GptConfig(vocab_size=256, d_model=32, num_layers=2, num_heads=4, d_ff=64, max_len=LENGTH)
T5 = T5Config(
    vocab_size=256, d_model=32, num_layers=2, num_decoder_layers=2, num_heads=4, head_dim=8, d_ff=64, num_buckets=8,
    max_distance=16, max_len=LENGTH, start_id=0,
)  # fmt: skip
ALBERT = dataclasses.replace(BERT, embed_dim=16, shared_groups=1)
VIT = VitConfig(d_model=32, num_layers=2, num_heads=4, d_ff=64, image_size=(8, 8), patch_size=4, dropout=0.1)
ELECTRA = dataclasses.replace(BERT, embed_dim=16, pooler="dropout_gelu", activation="gelu")

FAMILIES: dict[str, tuple[ModelConfig, ObjectiveConfig]] = {
    "bert": (BERT, MaskedLM(pair="nsp")),
    "bert, pre-norm, scanned": (dataclasses.replace(BERT, norm_position="pre", scan=True), MaskedLM(unit="span")),
    "bert, attention in blocks": (dataclasses.replace(BERT, attention="chunked"), MaskedLM(pair="nsp")),
    "roberta": (
        dataclasses.replace(BERT, num_types=0, first_position=2, activation="gelu", norm_eps=1e-5),
        MaskedLM(reduction="sequence"),
    ),
    "albert": (ALBERT, MaskedLM(pair="sop", unit="ngram")),
    "electra": (ElectraConfig(ELECTRA, dataclasses.replace(ELECTRA, d_model=16, d_ff=32)), ReplacedTokenDetection()),
    "gpt-2": (GPT, CausalLM()),
    "gpt-3": (dataclasses.replace(GPT, local_window=16, scan=True), CausalLM()),
    "gpt, prefix": (GPT, PrefixLM()),
    "bert, odd vocabulary": (dataclasses.replace(BERT, vocab_size=257), MaskedLM(pair="nsp")),
    "gpt-2, odd vocabulary": (dataclasses.replace(GPT, vocab_size=257), CausalLM()),
    "t5": (T5, SpanCorruption()),
    "t5, attention in blocks": (dataclasses.replace(T5, attention="chunked"), SpanCorruption()),
    "t5 v1.1": (dataclasses.replace(T5, gated=True, tied=False, activation="gelu_tanh"), SpanCorruption(z_loss=1e-4)),
    "vit": (VIT, Classify(num_labels=3)),
    "vit, video": (dataclasses.replace(VIT, frames=2, time_attention="factorised", scan=True), Classify(num_labels=3)),
    "prefix, gpt": (PrefixConfig(VIT, GPT), ConditionalLM()),
    "prefix, bert": (PrefixConfig(VIT, BERT, "linear", "all"), Classify(num_labels=3)),
    "prefix, t5": (PrefixConfig(VIT, T5, layer="penultimate"), Seq2Seq()),
    "captioner, gpt-2": (CaptionerConfig(VIT, dataclasses.replace(GPT, d_model=16)), Seq2Seq()),
    "captioner, bert": (CaptionerConfig(VIT, BERT), Seq2Seq()),
    "switch": (
        dataclasses.replace(T5, experts=Experts(4), init_scale=0.1, truncated_init=True),
        SpanCorruption(input_len=LENGTH),
    ),
}

MESHES: dict[str, Mesh] = {
    "data 8": Mesh(data=8),
    "fsdp 8": Mesh(data=1, fsdp=8),
    "2 × 2 × 2": Mesh(data=2, fsdp=2, tensor=2),
    "fsdp 4, tensor 2": Mesh(data=1, fsdp=4, tensor=2),
    "expert 2, fsdp 2, tensor 2": Mesh(data=1, fsdp=2, expert=2, tensor=2),
    "data 2, expert 4": Mesh(data=2, expert=4),
    "sequence 2, fsdp 2, tensor 2": Mesh(data=1, fsdp=2, sequence=2, tensor=2),
    "data 2, sequence 4": Mesh(data=2, sequence=4),
    "expert 2, sequence 2, tensor 2": Mesh(data=1, expert=2, sequence=2, tensor=2),
    "dcn 2, fsdp 2, tensor 2": Mesh(dcn=2, data=1, fsdp=2, tensor=2),
}


def packed_batch(rng: np.random.Generator) -> Batch:
    """Rows of up to three documents each, with padding at their ends."""
    cuts = np.sort(rng.integers(8, LENGTH + 1, (ROWS, 3)), axis=1)
    index = np.arange(LENGTH)
    segments = 1 + (index[None, None] >= cuts[:, :2, None]).sum(1)
    segments = np.where(index[None] < cuts[:, 2:], segments, 0).astype(np.int32)
    starts = np.where(segments[:, :, None] == segments[:, None, :], index, LENGTH).min(-1)
    return {
        "input_ids": np.where(segments > 0, rng.integers(7, 224, (ROWS, LENGTH)), 0).astype(np.int32),
        "segment_ids": segments,
        "positions": (index - starts).astype(np.int32),
        "type_ids": np.zeros((ROWS, LENGTH), np.int32),
        "pair_label": rng.integers(0, 2, ROWS).astype(np.int32),
    }


def captioned_batch(rng: np.random.Generator, shape: tuple[int, ...]) -> Batch:
    """An image of this shape and a text a row, with padding at its end, as every objective about images wants them."""
    lengths, index = rng.integers(8, PROMPT + 1, (ROWS, 1)), np.arange(PROMPT)
    segments = (index[None] < lengths).astype(np.int32)
    ids = np.where(segments > 0, rng.integers(7, 224, (ROWS, PROMPT)), 0).astype(np.int32)
    positions = (index[None] * segments).astype(np.int32)
    return {
        "images": rng.integers(0, 256, (ROWS, *shape), dtype=np.uint8),
        "input_ids": ids, "segment_ids": segments, "positions": positions, "type_ids": np.zeros_like(ids),
        "target_ids": ids[:, ::-1].copy(), "target_segment_ids": segments, "target_positions": positions,
        "target_mask": (segments * (index[None] >= 4)).astype(np.int32),
        "label": rng.integers(0, 3, ROWS).astype(np.int32),
    }  # fmt: skip


def batch_for(family: str, seed: int) -> Batch:
    """A batch of the family's kind."""
    return batch_of(FAMILIES[family][0], seed)


def batch_of(model: ModelConfig, seed: int) -> Batch:
    """A batch that a model reads."""
    rng, shape = np.random.default_rng(seed), model.image_shape
    return packed_batch(rng) if shape is None else captioned_batch(rng, shape)


class Update(NamedTuple):
    """What a mesh computes of one batch."""

    loss: float
    grads: Params


@functools.cache
def initial_params(model: ModelConfig, objective: ObjectiveConfig) -> Params:
    """Initial parameters, on one device, with their boxes."""
    module, made = model.make(), objective.make(VOCAB)
    batch = batch_of(model, 0)
    return jax.jit(lambda batch: boxed_state(module, made, optax.identity(), batch, seed=0).params)(batch)


def compile_update(
    model: ModelConfig, objective: ObjectiveConfig, batch: Batch, mesh: jax.sharding.Mesh
) -> tuple[jax.stages.Compiled, Params]:
    """The program that computes loss and gradients, with dropout and all other noise, and the parameters' shardings."""
    made, apply, boxed = objective.make(VOCAB), make_apply(model.make()), initial_params(model, objective)
    shardings = state_shardings(boxed, mesh)

    def update(params: Params, batch: Batch) -> tuple:
        prepared = made.prepare(random_key(0, NOISE, 0), batch)
        return loss_and_grads(made, apply, params, prepared, random_key(0, DROPOUT, 0), 1)[::2]

    def shape(array: jax.Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    rows = NamedSharding(mesh, spec(("batch",)))
    shapes = (
        jax.tree.map(shape, nn.unbox(boxed), shardings),
        {name: shape(array, rows) for name, array in batch.items()},
    )
    with jax.set_mesh(mesh):
        return jax.jit(update, out_shardings=(None, shardings)).lower(*shapes).compile(), shardings


def update_on(family: str, batch: Batch, layout: Mesh, devices: int) -> Update:
    """What a mesh of host devices computes."""
    mesh = make_mesh(layout, jax.devices()[:devices])
    compiled, shardings = compile_update(*FAMILIES[family], batch, mesh)
    params = jax.device_put(nn.unbox(initial_params(*FAMILIES[family])), shardings)
    loss, grads = compiled(params, put_batch(batch, mesh))
    return Update(float(loss), jax.device_get(grads))


def errors(found: Update, expected: Update) -> dict[str, float]:
    """Relative error of the loss, and of each tensor of gradients the largest one relative to its largest entry.

    Biases of keys shift all scores of a query alike: their gradient is 0 but for rounding, and counts relative to that
    of the queries' biases.
    """
    result = {"loss": abs(found.loss - expected.loss) / abs(expected.loss)}
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected.grads)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(found.grads):
        name = jax.tree_util.keystr(path)
        scale = wanted[name.replace("['key']['bias']", "['query']['bias']")]
        difference = float(np.max(np.abs(leaf - wanted[name])))
        result[name] = difference and difference / float(np.max(np.abs(scale)))  # what is not used has gradients of 0
    return result
