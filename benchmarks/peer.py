"""The peer's side: transformers on torch, at its best settings."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.cases import SIZES, Case
from benchmarks.finetune import UPDATES

Work = tuple[Callable[[], None], dict[str, float]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_float32_matmul_precision("high")  # what compiled programs advise; products under autocast are bfloat16 anyway


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


def train_case(case: Case) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model and its arguments, masked beforehand for masked LM."""
    ids, size = token_ids(case), SIZES[case["model"]]
    dropout, attention = case.get("dropout", 0.1), case.get("attention_dropout", 0.1)
    if case["model"].startswith("gpt"):
        config = transformers.GPT2Config(
            vocab_size=size["vocab_size"], n_embd=size["d_model"], n_layer=size["num_layers"], n_head=size["num_heads"],
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=attention, use_cache=False,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}
    if case["model"].startswith("t5"):
        config = transformers.T5Config(
            vocab_size=size["vocab_size"], d_model=size["d_model"], num_layers=size["num_layers"], d_kv=64,
            num_heads=size["num_heads"], d_ff=size["d_ff"], dropout_rate=dropout, use_cache=False,
            decoder_start_token_id=0,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config), {
            "input_ids": ids,
            "labels": ids[:, : case["target"]].contiguous(),
        }
    config = bert_config(case)
    config.hidden_dropout_prob, config.attention_probs_dropout_prob = dropout, attention
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.15
    arguments = {"input_ids": torch.where(chosen, 103, ids), "labels": torch.where(chosen, ids, -100)}
    return transformers.BertForMaskedLM(config), arguments


def train_step(case: Case) -> Work:
    """One update: of masked LM, masked beforehand, of a causal LM, or of T5; fused AdamW, clipping."""
    model, arguments = train_case(case)
    model = model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if case.get("compile") else model

    def run() -> None:
        with autocast(case), kernel(case):
            loss = forward(**arguments).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish()

    tokens = arguments["input_ids"].numel()
    if case["model"].startswith("t5"):
        tokens += arguments["labels"].numel()
    return run, {"tokens": float(tokens)}


def finetune(case: Case) -> Work:
    """Updates of MiniLM on sentences grouped by length, each batch padded to its longest."""
    with np.load(case["ids"]) as found:
        rows = [torch.tensor(row) for row in np.split(found["ids"].astype(np.int64), found["lengths"].cumsum()[:-1])]
        lengths, labels = found["lengths"].tolist(), found["labels"].tolist()
    config = transformers.BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_labels=2)
    model = transformers.BertForSequenceClassification(config).to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model, dynamic=True) if case.get("compile") else model

    def collate(indices: list[int]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in indices], batch_first=True)
        chosen = torch.tensor([labels[i] for i in indices])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": chosen}

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        sampler = LengthGroupedSampler(case["batch"], lengths=lengths)
        while True:
            yield from torch.utils.data.DataLoader(range(len(rows)), case["batch"], sampler=sampler, collate_fn=collate)

    feed = batches()

    def run() -> None:
        for _ in range(UPDATES):
            with autocast(case):
                loss = forward(**{name: array.to(DEVICE) for name, array in next(feed).items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        finish()

    return run, {"tokens": UPDATES * case["batch"] * float(np.mean(lengths))}


def kernel(case: Case) -> Any:
    """The kernel of attention, where the case names one."""
    if case.get("attention") == "cudnn":
        return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH])
    return contextlib.nullcontext()


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


def peak_bytes() -> int:
    """Bytes of the device's memory that were used at most; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


def describe() -> dict[str, str]:
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peer_device": device}
