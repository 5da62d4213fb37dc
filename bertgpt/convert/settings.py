"""config.json: which fields describe the model, what absent fields mean, and which fields may be ignored, and why."""

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from bertgpt.layers.mlp import Activation
from bertgpt.ranges import LARGEST
from bertgpt.types import JsonObject, UserError

Meaning = TypeVar("Meaning")
NUMBER = (int, float)
OPTIONAL_INT = (int, type(None))
OPTIONAL_NUMBER = (int, float, type(None))

# The same function has several names there, which differ in how it is computed.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "relu": "relu",
    "silu": "silu", "swish": "silu", "quick_gelu": "quick_gelu", "tanh": "tanh",
}  # fmt: skip
NAMES: dict[Activation, str] = {
    "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "quick_gelu": "quick_gelu", "tanh": "tanh",
}  # fmt: skip
EXACT_GELU = tuple(name for name, activation in ACTIVATIONS.items() if activation == "gelu")

IGNORED = {
    "where the model comes from and what wrote it": """
        _commit_hash _name_or_path architectures finetuning_task language model_type name name_or_path
        sentence_transformers tokenizer_class transformers_version transformers.js_config""",
    "code of other libraries, which is never run": "auto_map custom_pipelines",
    "how other libraries compute the same function": """
        _attn_implementation _attn_implementation_autoset _attn_implementation_internal _flash_attn_2_enabled
        attn_implementation chunk_size_feed_forward dtype gradient_checkpointing torch_dtype torchscript use_bfloat16
        use_cache xla_device""",
    "what other libraries return beside the outputs": """
        add_router_probs output_attentions output_hidden_states output_past return_dict use_return_dict""",
    "read elsewhere: the labels of a classifier": "_num_labels id2label label2id num_labels problem_type",
    "read elsewhere or by the tokenizer: special tokens": """
        bos_token_id cls_token_id decoder_start_token_id eos_token_id eos_token_ids mask_token_id pad_token_id
        sep_token_id unk_token_id""",
    "lengths that tokenizers and old versions keep beside the table of positions": "model_max_length n_ctx n_positions",
    "read elsewhere: defaults of generation": """
        bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
        exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
        no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix remove_invalid_values
        repetition_penalty return_dict_in_generate suppress_tokens task_specific_params temperature top_k top_p
        typical_p""",
    "used in training alone": """
        classifier_dropout initializer_factor initializer_range label_smoothing router_aux_loss_coef router_z_loss_coef
        tf_legacy_loss""",
    "the size of the vocabulary, under an old name that no version reads": "vocab_size_or_config_json_file",
    "the head of a GPT-2 with two heads, or of a multiple-choice ELECTRA, which checks those that matter": """
        n_special predict_special_tokens summary_activation summary_first_dropout summary_last_dropout
        summary_proj_to_labels summary_type summary_use_proj""",
    "written by released BERTs and ALBERTs, read by no version": """
        directionality down_scale_factor embedding_type gap_size layers_to_keep net_structure_type num_memory_blocks
        pooler_fc_size
        pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type""",
    "said by the tensors themselves: tied ones are equal": "tie_weights_",
}
"""reason → fields that do not change what the model computes"""
REASONS = {field: reason for reason, fields in IGNORED.items() for field in fields.split()}

NEUTRAL: dict[str, tuple[object, ...]] = {
    "adapter_fusion": (None,),
    "adapters": ({}, None),
    "cross_attention_hidden_size": (None,),
    "is_composition": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
    "use_cross_attention": (False,),
}
"""field → values with which it does not change the model; with others it does"""


class Settings:
    """A config.json all of whose fields must be read: an unread field is an error, because it may change the model."""

    def __init__(self, values: JsonObject, file: str, defaults: JsonObject, synonyms: Mapping[str, str]):
        """Settings of one file.

        Args:
          values: the object in the file.
          file: what to call it in messages.
          defaults: field → value of fields that are absent, after the family's configuration class of transformers.
          synonyms: names that the family's configuration class accepts → the field's own name.

        Raises:
          UserError: a field and its synonym disagree.
        """
        self.file, self.defaults = file, defaults
        self.values = dict(values)
        for other, name in synonyms.items():
            if other in values:
                value = self.values.pop(other)
                if self.values.setdefault(name, value) != value:
                    raise UserError(f"{file}: {other}={shown(value)} contradicts {name}={shown(self.values[name])}")
        self.used: set[str] = set()

    def __call__(self, key: str, *, kind: type | tuple[type, ...] = int) -> Any:
        """The value of a key, or its default.

        Args:
          key: name of the field.
          kind: allowed types; a bool is not an int.

        Raises:
          UserError: it is of another type, negative, not finite or too large.
        """
        self.used.add(key)
        if key not in self.values:
            return self.defaults[key]
        value = self.values[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise UserError(f"{self.file}: {key}={shown(value)} must be {names}")
        if isinstance(value, NUMBER) and not 0 <= value <= LARGEST:  # NaN neither
            raise UserError(f"{self.file}: {key}={shown(value)} must lie between 0 and {LARGEST:,}")
        return value

    def one_of(self, key: str, known: Mapping[str, Meaning]) -> Meaning:
        """The meaning of a key that must have one of the known values. Errors: UserError."""
        value = self(key, kind=str)
        if value not in known:
            raise UserError(f"{self.file}: {key}={shown(value)} is not supported; only {', '.join(known)}")
        return known[value]

    def must_be(self, key: str, *allowed: object) -> None:
        """Raises UserError if a key is present with a value other than these."""
        self.used.add(key)
        value = self.values.get(key, allowed[0])
        # 0 and 0.0 equal False, and 1 True, but a file that says so means something else
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
            names = ", ".join(map(repr, allowed))
            raise UserError(f"{self.file}: {key}={shown(value)} is not supported; only {names}")

    def finish(self) -> None:
        """Raises UserError if a key was not read and may change the model."""
        for key in sorted(self.values.keys() & NEUTRAL.keys() - self.used):
            self.must_be(key, *NEUTRAL[key])
        for key in sorted(self.values.keys() - self.used - REASONS.keys()):
            value = shown(self.values[key])
            raise UserError(f"{self.file}: unknown field {key}={value}; if it does not change the model, remove it")


def shown(value: object) -> str:
    """A value as messages show it: one short line, however large or deep it is."""
    text = value if isinstance(value, str) else None
    return reprlib.repr(value) if text is None or len(text) > 60 else repr(text)
