"""What is measured: shapes, and who takes part. Both sides read the same case, so that they do the same work."""

from typing import Any

from bertgpt.cli.huge_pages import TUNABLE

SIZES = {
    "bert_base": {"vocab_size": 30_522, "d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072},
    "bert_mini": {"vocab_size": 30_522, "d_model": 256, "num_layers": 4, "num_heads": 4, "d_ff": 1024},
    "gpt2_124m": {"vocab_size": 50_257, "d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072},
    "t5_base": {"vocab_size": 32_128, "d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072},
}
Case = dict[str, Any]

CASES: dict[str, list[Case]] = {
    "train_step": [
        {"model": "bert_base", "batch": 8, "length": 128},
        {"model": "bert_mini", "batch": 32, "length": 128},
    ],
    "inference": [
        {"model": "bert_base", "batch": 8, "length": 128},
        {"model": "bert_base", "batch": 1, "length": 32},
        {"model": "bert_mini", "batch": 32, "length": 128},
    ],
    "decode": [
        {"model": "gpt2_124m", "batch": 1, "length": 16, "new": 64},
        {"model": "gpt2_124m", "batch": 8, "length": 16, "new": 64},
    ],
    "finetune": [{"model": "minilm", "batch": 32, "rows": 7}],
    "startup": [{"model": "bert_base", "batch": 8, "length": 128}],
}
# On an accelerator, shapes that fill it, and of which two contenders fit into its memory at the same time.
LARGE: dict[str, list[Case]] = {
    "train_step": [
        {"model": "bert_base", "batch": 96, "length": 128},
        {"model": "bert_base", "batch": 24, "length": 512},
        {"model": "gpt2_124m", "batch": 16, "length": 1024},
        {"model": "t5_base", "batch": 16, "length": 512, "target": 114},
    ],
    "inference": [{"model": "bert_base", "batch": 64, "length": 512}, {"model": "bert_base", "batch": 1, "length": 32}],
    "decode": [
        {"model": "gpt2_124m", "batch": 1, "length": 16, "new": 256},
        {"model": "gpt2_124m", "batch": 32, "length": 16, "new": 256},
    ],
    "startup": [{"model": "bert_base", "batch": 8, "length": 128}],
}

# Name → (side, settings). "environment" holds variables of the process.
RBG = {"environment": {"JAX_DEFAULT_PRNG_IMPL": "rbg"}}
CUBLAS = {"environment": {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}}
LARGE_PAGES = {"GLIBC_TUNABLES": TUNABLE}
PAGES = {"environment": LARGE_PAGES}
CONTENDERS: dict[str, dict[str, tuple[str, Case]]] = {
    "train_step": {
        "bertgpt float32": ("ours", {"dtype": "float32"}),
        "bertgpt bfloat16": ("ours", {"dtype": "bfloat16"}),
        "transformers float32": ("peer", {"dtype": "float32"}),
        "transformers bfloat16": ("peer", {"dtype": "bfloat16"}),
        "transformers float32, compiled": ("peer", {"dtype": "float32", "compile": True}),
        "transformers bfloat16, compiled": ("peer", {"dtype": "bfloat16", "compile": True}),
        "transformers bfloat16, large pages": ("peer", {"dtype": "bfloat16"} | PAGES),
        "transformers bfloat16, compiled, large pages": ("peer", {"dtype": "bfloat16", "compile": True} | PAGES),
    },
    "decode": {
        "bertgpt float32": ("ours", {"dtype": "float32"}),
        "transformers float32": ("peer", {"dtype": "float32", "cache": "dynamic"}),
        "transformers float32, static cache": ("peer", {"dtype": "float32", "cache": "static"}),
        "transformers bfloat16, static cache": ("peer", {"dtype": "bfloat16", "cache": "static"}),
        "transformers bfloat16, static cache, large pages": ("peer", {"dtype": "bfloat16", "cache": "static"} | PAGES),
    },
    "startup": {
        "bertgpt, nothing compiled before": ("ours", {"dtype": "float32", "cold": True}),
        "bertgpt, compiled before": ("ours", {"dtype": "float32"}),
        "transformers": ("peer", {"dtype": "float32"}),
        "transformers, compiled": ("peer", {"dtype": "float32", "compile": True}),
    },
}
CONTENDERS["inference"] = CONTENDERS["finetune"] = CONTENDERS["train_step"]
CONTENDERS["train_step"] = CONTENDERS["train_step"] | {
    # Without dropout on attention weights, which no fused kernel of jax has.
    "bertgpt bfloat16, no attention dropout": ("ours", {"dtype": "bfloat16", "attention_dropout": 0.0}),
    "bertgpt bfloat16, no attention dropout, rbg": ("ours", {"dtype": "bfloat16", "attention_dropout": 0.0} | RBG),
    "bertgpt bfloat16, no attention dropout, cublas": (
        "ours", {"dtype": "bfloat16", "attention_dropout": 0.0} | CUBLAS
    ),
    "bertgpt bfloat16, no dropout": ("ours", {"dtype": "bfloat16", "attention_dropout": 0.0, "dropout": 0.0}),
    "transformers bfloat16, compiled, no attention dropout": (
        "peer", {"dtype": "bfloat16", "compile": True, "attention_dropout": 0.0}
    ),
    "transformers bfloat16, compiled, no attention dropout, cuDNN": (
        "peer", {"dtype": "bfloat16", "compile": True, "attention_dropout": 0.0, "attention": "cudnn"}
    ),
    "transformers bfloat16, no attention dropout": ("peer", {"dtype": "bfloat16", "attention_dropout": 0.0}),
    "transformers bfloat16, compiled, no dropout": (
        "peer", {"dtype": "bfloat16", "compile": True, "attention_dropout": 0.0, "dropout": 0.0}
    ),
    "transformers bfloat16, no dropout": ("peer", {"dtype": "bfloat16", "attention_dropout": 0.0, "dropout": 0.0}),
}  # fmt: skip
CONTENDERS["decode"] |= {"bertgpt bfloat16": ("ours", {"dtype": "bfloat16"})}
ON_CPU = tuple(CONTENDERS["inference"])
"""Those of `train_step` that are measured on a CPU."""
