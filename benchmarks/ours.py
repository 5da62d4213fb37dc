"""Our side: for a case, a function that does the work once and waits for it, and how much work that is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import SIZES, Case
from benchmarks.finetune import MODEL, UPDATES
from bertgpt.config import Mesh
from bertgpt.data.loader import prefetch
from bertgpt.data.tokenizer import load_tokenizer
from bertgpt.inference.decoding import Decoding, Stops, continue_sampling, start_sampling
from bertgpt.inference.model import find_model, tokenizer_folder
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import MINILM_L6_H384, BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.lm import CausalLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.seq2seq import Seq2Seq
from bertgpt.sharding import make_mesh
from bertgpt.tasks.classification import TextClassification
from bertgpt.training import throughput
from bertgpt.training.optim import AdamW
from bertgpt.training.state import TrainState, init_state
from bertgpt.training.step import loss_and_grads, make_train_step
from bertgpt.training.throughput import count_matmul
from bertgpt.types import Batch, DataRequest, Inputs, ModelConfig, Objective, ObjectiveConfig, Vocab

VOCAB = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
Work = tuple[Callable[[], None], dict[str, float]]


def token_ids(case: Case) -> np.ndarray:
    """The same random rows on both sides."""
    vocab_size = SIZES[case["model"]]["vocab_size"]
    return np.random.default_rng(0).integers(200, vocab_size, (case["batch"], case["length"])).astype(np.int32)


def train_case(case: Case) -> tuple[ModelConfig, ObjectiveConfig, Batch]:
    """The model, what it learns, and a batch of full sequences."""
    numbers, ids = SIZES[case["model"]], token_ids(case)
    batch = rows(ids, "input_ids", "segment_ids", "positions") | {"type_ids": np.zeros_like(ids)}
    own = {name: case[name] for name in ("dropout", "attention_dropout") if name in case}
    if case["model"].startswith("gpt"):
        return GptConfig(**numbers, **own), CausalLM(), batch
    if case["model"].startswith("t5"):
        own.pop("attention_dropout", None)
        targets = rows(ids[:, : case["target"]], "target_ids", "target_segment_ids", "target_positions")
        return T5Config(**numbers, num_decoder_layers=numbers["num_layers"], **own), Seq2Seq(), batch | targets
    return BertConfig(**numbers, **own), MaskedLM(), batch


def rows(ids: np.ndarray, name: str, segments: str, positions: str) -> Batch:
    """Fields of sequences without padding, one document each."""
    columns = np.arange(ids.shape[1], dtype=np.int32)
    return {name: ids, segments: np.ones_like(ids), positions: np.tile(columns, (len(ids), 1))}


class Step:
    """A compiled training step with its state: `run` does one update and waits for it."""

    def __init__(self, program: jax.stages.Compiled, state: TrainState, batch: Batch, tokens: int, flops: int):
        self.program, self.state, self.batch, self.tokens, self.flops = program, state, batch, tokens, flops

    def update(self, batch: Batch) -> None:
        self.state, _, _ = self.program(self.state, batch)

    def run(self) -> None:
        self.update(self.batch)
        jax.block_until_ready(self.state.params)


def compile_step(case: Case) -> Step:
    """One update: of masked LM, masking included, of a causal LM, or of an encoder–decoder; AdamW, clipping."""
    config, learnt, batch = train_case(case)
    tokens = sum(batch[name].size for name in ("input_ids", "target_ids") if name in batch)
    return start(case, config, learnt.make(Vocab(config.vocab_size, **VOCAB)), jax.device_put(batch), tokens)


def start(case: Case, config: ModelConfig, objective: Objective, batch: Batch, tokens: int) -> Step:
    """Initialises a model and compiles its step."""
    apply = make_apply(config.make(case["dtype"]))
    tx, schedule = AdamW(lr=1e-4, warmup_steps=10, clip_norm=1.0).make(1000)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, shardings = init_state(config.make(case["dtype"]), objective, tx, batch, mesh, 0)
        program = make_train_step(objective, apply, tx, schedule, shardings, seed=0).lower(state, batch).compile()
        key = jax.random.key(0)

        def gradient(params: Any, batch: Any, key: Any) -> Any:
            return loss_and_grads(objective, apply, params, objective.prepare(key, batch), key, 1)

        flops = count_matmul(gradient, state.params, batch, key)
    return Step(program, state, batch, tokens, flops)


def train_step(case: Case) -> Work:
    """`compile_step` as a benchmark."""
    step = compile_step(case)
    return step.run, {"tokens": float(step.tokens), "flops": float(step.flops)}


def finetune(case: Case) -> Work:
    """Updates of MiniLM on packed sentences, from their records to the end of the last update."""
    data = TextClassification(case["records"], seq_len=128, packed=True).infer()
    tokenizer = load_tokenizer(tokenizer_folder(find_model(MODEL, Path())))
    request = DataRequest("train", tokenizer, case["rows"], cache=Path(case["records"]).parent, shuffle=True)
    batches = data.make(request)
    config, objective = dataclasses.replace(MINILM_L6_H384, pooler="mean"), Classify().infer(data).make(tokenizer.vocab)
    epoch = [batches[step] for step in range(batches.steps_per_epoch)]
    tokens = sum(int((batch["segment_ids"] > 0).sum()) for batch in epoch) / len(epoch)
    step = start(case, config, objective, jax.device_put(epoch[0]), int(tokens))
    feed = prefetch(batches, 0, 10**6, jax.device_put)

    def run() -> None:
        for _ in range(UPDATES):
            step.update(next(feed))
        jax.block_until_ready(step.state.params)

    texts = sum(int((batch["label"] >= 0).sum()) for batch in epoch) / len(epoch)
    return run, {"tokens": UPDATES * tokens, "flops": float(UPDATES * step.flops), "texts": UPDATES * texts}


def inference(case: Case) -> Work:
    """Hidden states and pooled vectors of a batch."""
    config, ids = BertConfig(**SIZES[case["model"]]), jnp.asarray(token_ids(case))
    module, segments = config.make(case["dtype"]), jnp.ones(ids.shape, jnp.int32)

    def forward(module: nn.Module, ids: jax.Array, segments: jax.Array) -> Any:
        hidden = module(Inputs(ids, segments))
        return hidden, module.pool(hidden, segments)

    init = nn.init(forward, module)
    params = jax.jit(lambda: nn.unbox(init({"params": jax.random.key(0)}, ids, segments)["params"]))()
    params = for_inference(params, config.stacks, case["dtype"])
    apply = make_apply(module)

    def function(params: Any, ids: jax.Array, segments: jax.Array) -> Any:
        hidden = apply(params, Inputs(ids, segments))
        return hidden, apply(params, method="pool", hidden=hidden, segment_ids=segments)

    compiled = jax.jit(function).lower(params, ids, segments).compile()

    def run() -> None:
        jax.block_until_ready(compiled(params, ids, segments))

    flops = count_matmul(function, params, ids, segments)
    return run, {"tokens": float(ids.size), "flops": float(flops)}


def decode(case: Case) -> Work:
    """Greedy decoding of `new` tokens after a prompt."""
    config = GptConfig(**SIZES[case["model"]])
    module, ids = config.make(case["dtype"]), token_ids(case)
    init = jax.jit(lambda: nn.unbox(module.init(jax.random.key(0), Inputs(jnp.asarray(ids))))["params"])
    params = for_inference(init(), config.stacks, case["dtype"])
    static = {
        "apply": make_apply(module), "start_id": None, "decoding": Decoding(case["new"]),
        "stops": Stops((), 0, config.vocab_size),
    }  # fmt: skip
    starts = np.zeros(len(ids), np.int32)
    seeds = jax.random.key_data(jax.random.split(jax.random.key(0), len(ids)))

    def run() -> None:
        state = start_sampling(**static, params=params, prompts=ids, starts=starts, seeds=seeds)
        jax.block_until_ready(continue_sampling(**static, params=params, state=state, until=case["new"]))

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - params["embeddings"]["position"].nbytes
    return run, {"tokens": float(len(ids) * case["new"]), "bytes": float(size * case["new"])}


def matmul_rate(dtype: str) -> float:
    """FLOP/s of one large product."""
    return throughput.matmul_rate(2048 if jax.default_backend() == "cpu" else 8192, dtype)


def peak_bytes() -> int:
    """Bytes of the device's memory that were used at most; 0 where it is not known."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def describe() -> dict[str, str]:
    device = jax.devices()[0]
    return {"jax": jax.__version__, "device": device.device_kind, "platform": device.platform}
