"""The peer's side: transformers on torch, at its best settings."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.cases import SIZES, Case

Work = tuple[Callable[[], None], dict[str, float]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def token_ids(case: Case) -> torch.Tensor:
    """The same random rows on both sides."""
    vocab_size = SIZES[case["model"]]["vocab_size"]
    ids = np.random.default_rng(0).integers(200, vocab_size, (case["batch"], case["length"]))
    return torch.tensor(ids, device=DEVICE)


def bert_config(case: Case) -> transformers.BertConfig:
    size = SIZES[case["model"]]
    return transformers.BertConfig(
        vocab_size=size["vocab_size"], hidden_size=size["d_model"], num_hidden_layers=size["num_layers"],
        num_attention_heads=size["num_heads"], intermediate_size=size["d_ff"], hidden_act="gelu_new",
    )  # fmt: skip


def finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def autocast(case: Case) -> Any:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=case["dtype"] == "bfloat16")


def train_step(case: Case) -> Work:
    """One update of masked LM, masked beforehand, dropout 0.1, fused AdamW, clipping."""
    model = transformers.BertForMaskedLM(bert_config(case)).to(DEVICE).train()
    ids = token_ids(case)
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.15
    labels = torch.where(chosen, ids, -100)
    inputs = torch.where(chosen, 103, ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if case.get("compile") else model

    def run() -> None:
        with autocast(case):
            loss = forward(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish()

    return run, {"tokens": float(ids.numel())}


def inference(case: Case) -> Work:
    """Hidden states and pooled vectors of a batch."""
    model = transformers.BertModel(bert_config(case)).to(DEVICE).eval()
    ids = token_ids(case)
    mask = torch.ones_like(ids)
    forward = torch.compile(model) if case.get("compile") else model

    def run() -> None:
        with torch.inference_mode(), autocast(case):
            forward(input_ids=ids, attention_mask=mask)
        finish()

    return run, {"tokens": float(ids.numel())}


def decode(case: Case) -> Work:
    """Greedy decoding of `new` tokens after a prompt."""
    size = SIZES[case["model"]]
    config = transformers.GPT2Config(
        vocab_size=size["vocab_size"], n_embd=size["d_model"], n_layer=size["num_layers"], n_head=size["num_heads"]
    )
    dtype = getattr(torch, case["dtype"])
    model = transformers.GPT2LMHeadModel(config).to(DEVICE, dtype).eval()
    ids = token_ids(case)
    extra = {"cache_implementation": "static"} if case["cache"] == "static" else {}

    def run() -> None:
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=case["new"], min_new_tokens=case["new"],
                do_sample=False, pad_token_id=0, **extra,
            )  # fmt: skip
        finish()

    return run, {"tokens": float(len(ids) * case["new"])}


def matmul_rate(dtype: str) -> float:
    """FLOP/s of one large product."""
    size = 2048 if DEVICE == "cpu" else 8192
    x = torch.ones(size, size, dtype=getattr(torch, dtype), device=DEVICE)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(x, x)
        finish()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def describe() -> dict[str, str]:
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peer_device": device}
