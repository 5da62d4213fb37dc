"""Models rewritten so that they compute the same in the form that a Hugging Face family asks for.

Every family there fixes details that a config here leaves open: how many token types there are at least, at which
position the first token stands, whether a classifier has a bias. A model that differs only in such a detail is
rewritten before its export; `check_same_function` finds the differences that remain.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from bertgpt.convert.core import Config, ConvertibleConfig, Family, get, put
from bertgpt.models.bert import BertConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vit import VitConfig
from bertgpt.types import ModelConfig, Params, UserError

# Fields that do not change what a trained model computes.
TRAINING = frozenset(
    """dropout attention_dropout classifier_dropout stddev init_scale truncated_init initial_log_scale scan remat
    attention mlm_head""".split()
)
SAME_POOLERS = {"dropout_tanh": "tanh", "dropout_gelu": "gelu"}
"""poolers without their dropout"""


def fit_to_family(
    family: Family[Config], config: Config, params: Params, pad: int | None
) -> tuple[ConvertibleConfig, Params]:
    """The same model in the form of a family.

    Args:
      family: the family to write.
      config: the model config.
      params: its parameters, which are not changed.
      pad: the tokenizer's padding id; None: the family's usual one.

    Raises:
      UserError: a model without token types of its own family has several.
    """
    params = _copy(params)
    if not isinstance(config, BertConfig):
        return config, params
    if family.model_type == "distilbert":
        config = _without_types(config, params)
    elif config.num_types == 0:
        table = get(params, "embeddings/token")
        put(params, "embeddings/type", np.zeros((1, table.shape[1]), np.float32))
        config = dataclasses.replace(config, num_types=1)
    # RoBERTa counts positions from the padding id + 1; the other families from 0.
    first = 0
    if family.model_type in ("roberta", "xlm-roberta", "camembert"):
        first = (pad if pad is not None else max(config.first_position - 1, 1)) + 1
    if first != config.first_position:
        rows = get(params, "embeddings/position")[config.first_position :]
        put(params, "embeddings/position", np.concatenate([np.zeros((first, rows.shape[1]), np.float32), rows]))
        config = dataclasses.replace(config, first_position=first)
    return config, params


def _copy(params: Params) -> Params:
    """The same arrays in new dicts."""
    return {name: _copy(value) for name, value in params.items()} if isinstance(params, dict) else params


def _without_types(config: BertConfig, params: Params) -> BertConfig:
    """A single token type is a constant that is added to every position."""
    if config.num_types > 1:
        raise UserError(f"export: num_types={config.num_types}: distilbert has no token types")
    if config.num_types == 1:
        position = get(params, "embeddings/position") + get(params, "embeddings/type")
        put(params, "embeddings/position", position)
        del params["embeddings"]["type"]
    return dataclasses.replace(config, num_types=0)


def absorb_bias(params: Params) -> Params:
    """Moves the bias of a GPT's classifier into that of the final norm: Wᵀ(h + δ) = Wᵀh + c where Wᵀδ = c.

    GPT-2's classifier in transformers has no bias. Nothing else reads the final norm of a classifier.

    Raises:
      UserError: there is no such δ, because the classes' weights depend on one another linearly.
    """
    params = _copy(params)
    kernel, bias = (get(params, f"classifier/dense/{name}").astype(np.float64) for name in ("kernel", "bias"))
    delta = np.linalg.lstsq(kernel.T, bias, rcond=None)[0]
    if not np.allclose(kernel.T @ delta, bias, rtol=1e-6, atol=1e-9):
        raise UserError(
            "export: GPT-2's classifier has no bias there, and the weights of these classes are linearly dependent, so"
            " that the final norm cannot stand in for it"
        )
    norm = get(params, "final_norm/bias").astype(np.float64) + delta
    put(params, "final_norm/bias", norm.astype(np.float32))
    put(params, "classifier/dense/bias", np.zeros_like(bias, np.float32))
    return params


def check_same_function(
    config: ConvertibleConfig, written: ConvertibleConfig, architecture: str, used: Collection[str]
) -> None:
    """Checks that a directory describes the model that it was written from.

    Args:
      config: the model that was to be written.
      written: the config that is read from what was written.
      architecture: the architecture that was written, for messages.
      used: paths of the parameters that were written.

    Raises:
      UserError: the two differ in a field that changes what the model computes.
    """
    mine, theirs = _computing(config, used), _computing(written, used)
    for name, value in mine.items():
        if theirs[name] != value:
            raise UserError(
                f"export: {name}={value!r} has no counterpart in {architecture}, which computes {theirs[name]!r}"
            )


def _computing(config: ConvertibleConfig, used: Collection[str]) -> Mapping[str, object]:
    """The fields that matter to what a model with these parameters computes."""
    fields = {name: value for name, value in vars(config).items() if name not in TRAINING | {"vocab_size"}}
    for part in [name for name, value in fields.items() if isinstance(value, ModelConfig)]:
        inner = _computing(fields.pop(part), used)
        fields |= {f"{part}.{name}": value for name, value in inner.items()}
    if isinstance(config, BertConfig):
        uses_pooler = any(path.startswith("pooler/") for path in used)
        fields["pooler"] = SAME_POOLERS.get(config.pooler, config.pooler) if uses_pooler else None
        fields["embed_dim"] = config.embed_dim or config.d_model
    if isinstance(config, VitConfig) and not any(path.startswith(("pooler/", "classifier/")) for path in used):
        fields["pooler"] = None
    if isinstance(config, T5Config):  # relative positions set no limit, and capacities are checked where written
        del fields["max_len"]
        fields["experts"] = config.experts and (config.experts.num_experts, config.experts.every)
    return fields
