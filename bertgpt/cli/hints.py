"""What an unknown flag was meant to be: by the names that users of transformers know, by its last part, by spelling."""

from collections.abc import Sequence

from bertgpt.overrides import UnknownField, did_you_mean

METRICS = "metrics go to WORKDIR/NAME/metrics.jsonl and to TensorBoard files beside it; there is no other logger"
RESUME = "running the same command again resumes training"

# A name elsewhere → what it is here: flags, the first of which that exists is meant, or sentences.
MEANINGS: dict[str, tuple[str, ...]] = {
    # transformers.TrainingArguments
    "output_dir": ("--workdir", "--output", "--out"),
    "run_name": ("--name",),
    "learning_rate": ("--optim.lr",),
    "num_train_epochs": ("--epochs", "--steps"),
    "num_epochs": ("--epochs", "--steps"),
    "epochs": ("--steps",),
    "max_steps": ("--steps",),
    "num_train_steps": ("--steps",),
    "per_device_train_batch_size": ("--batch_size",),
    "train_batch_size": ("--batch_size",),
    "gradient_accumulation_steps": ("--microbatches",),
    "gradient_checkpointing": ("--model.remat",),
    "bf16": ("--compute_dtype bfloat16", "--dtype bfloat16"),
    "fp16": ("--compute_dtype bfloat16", "--dtype bfloat16"),
    "warmup_steps": ("--optim.warmup_steps",),
    "warmup_ratio": ("--optim.warmup_steps",),
    "weight_decay": ("--optim.weight_decay",),
    "adam_beta1": ("--optim.b1",),
    "adam_beta2": ("--optim.b2",),
    "adam_epsilon": ("--optim.eps",),
    "max_grad_norm": ("--optim.clip_norm",),
    "lr_scheduler_type": ("--optim.decay",),
    "label_smoothing_factor": ("--objective.label_smoothing",),
    "logging_steps": ("--log_every",),
    "eval_steps": ("--eval_every",),
    "save_steps": ("--save_every",),
    "save_total_limit": ("--keep_last",),
    "load_best_model_at_end": ("--keep_best",),
    "metric_for_best_model": ("--best_metric",),
    "greater_is_better": ("--best_mode",),
    "report_to": (METRICS,),
    "wandb": (METRICS,),
    "wandb_project": (METRICS,),
    "logging_dir": (METRICS,),
    "resume_from_checkpoint": (RESUME,),
    "resume": (RESUME,),
    "fsdp": ("--mesh.fsdp",),
    # its example scripts
    "model_name_or_path": ("--init_from", "the model is the first argument, without a flag"),
    "model_name": ("--init_from", "the model is the first argument, without a flag"),
    "tokenizer_name": ("--data.tokenizer", "--tokenizer"),
    "train_file": ("--data.path",),
    "dataset_name": ("--data.path",),
    "validation_file": ("--data.validation_path",),
    "test_file": ("--data.test_path", "--path"),
    "max_seq_length": ("--data.seq_len",),
    "max_length": ("--max_new_tokens", "--data.seq_len"),
    "block_size": ("--data.seq_len",),
    "mlm_probability": ("--objective.mask_rate",),
    "text_column_name": ("--data.text_field", "--text_field"),
    "label_column_name": ("--data.label_field", "--label_field"),
    # configurations of models
    "hidden_size": ("--model.d_model",),
    "num_hidden_layers": ("--model.num_layers",),
    "num_attention_heads": ("--model.num_heads",),
    "intermediate_size": ("--model.d_ff",),
    "max_position_embeddings": ("--model.max_len",),
    "hidden_dropout_prob": ("--model.dropout",),
    "attention_probs_dropout_prob": ("--model.attention_dropout",),
    # generation and tokenizers
    "do_sample": ("--temperature 1.0",),
    "beam_size": ("--num_beams",),
    "do_lower_case": ("--lowercase",),
    "cased": ("--lowercase False",),
    "no_normalize": ("--normalize False",),
}


def explain(error: UnknownField, flags: Sequence[str] = ()) -> str:
    """The message for an unknown flag, with what it may have been meant to be.

    Args:
      error: names the flag and the fields that exist.
      flags: names of the command's own flags.
    """
    known = list(dict.fromkeys([*error.known, *flags]))
    last = error.path.rpartition(".")[2]
    for meaning in MEANINGS.get(last, ()):
        if not meaning.startswith("--"):
            return f"unknown option --{error.path}: {meaning}"
        flag, _, value = meaning.removeprefix("--").partition(" ")
        found = [flag] if flag in known else _deeper(flag, known)
        if found:
            return (
                f"unknown option --{error.path}; did you mean {' or '.join(f'--{n} {value}'.strip() for n in found)}?"
            )
    return f"unknown option --{error.path}{did_you_mean(error.path, known)}"


def _deeper(flag: str, known: Sequence[str]) -> list[str]:
    """Where the component is nested: data.short.seq_len for data.seq_len."""
    first, dot, last = flag.partition(".")
    return [name for name in known if dot and name.startswith(f"{first}.") and name.endswith(f".{last}")][:3]
