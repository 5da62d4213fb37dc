"""Tiny random models of every family and option, as transformers makes them."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="parity needs the extra [peers]")
transformers = pytest.importorskip("transformers", reason="parity needs the extra [peers]")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny models; more threads only wait for each other

ENCODER = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 61,
    "max_position_embeddings": 20, "initializer_range": 0.2,
}  # fmt: skip
DISTIL = {
    "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "vocab_size": 61, "max_position_embeddings": 20,
    "initializer_range": 0.2,
}  # fmt: skip
GPT = {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 61, "n_positions": 128, "initializer_range": 0.2}
T5 = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_heads": 3, "num_layers": 2, "vocab_size": 61}
SWITCH = T5 | {"num_decoder_layers": 4, "num_layers": 4, "num_experts": 3, "num_sparse_encoder_layers": 2,
               "num_sparse_decoder_layers": 2, "expert_capacity": 16}  # fmt: skip
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 12,
       "patch_size": 4, "initializer_range": 0.2}  # fmt: skip

SHORT = {"n_positions": 20, "bos_token_id": 1, "eos_token_id": 2}
CROSS = {"is_decoder": True, "add_cross_attention": True}
GPT_WRITER = {"model_type": "gpt2", **GPT, **SHORT, **CROSS}
BERT_WRITER = {"model_type": "bert", **ENCODER, **CROSS}
CAPTIONER = {"encoder": {"model_type": "vit", **VIT}, "decoder_start_token_id": 3, "pad_token_id": 0, "eos_token_id": 2}

# name → (architecture, configuration class, settings)
CASES = {
    "bert": ("BertForPreTraining", "BertConfig", ENCODER),
    "bert-encoder": ("BertModel", "BertConfig", ENCODER),
    "bert-mlm-relu": ("BertForMaskedLM", "BertConfig", ENCODER | {"hidden_act": "relu"}),
    "bert-mlm-tanh-gelu-3-types": (
        "BertForMaskedLM", "BertConfig", ENCODER | {"hidden_act": "gelu_new", "type_vocab_size": 3},
    ),
    "bert-nsp-silu": ("BertForNextSentencePrediction", "BertConfig", ENCODER | {"hidden_act": "silu"}),
    "bert-classes": ("BertForSequenceClassification", "BertConfig", ENCODER | {"num_labels": 3}),
    "bert-tags": ("BertForTokenClassification", "BertConfig", ENCODER | {"num_labels": 5, "layer_norm_eps": 1e-5}),
    "bert-choices": ("BertForMultipleChoice", "BertConfig", ENCODER),
    "bert-spans": ("BertForQuestionAnswering", "BertConfig", ENCODER),
    "roberta-mlm": ("RobertaForMaskedLM", "RobertaConfig", ENCODER | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta-encoder": ("RobertaModel", "RobertaConfig", ENCODER),
    "roberta-classes": ("RobertaForSequenceClassification", "RobertaConfig", ENCODER | {"num_labels": 3}),
    "roberta-tags": ("RobertaForTokenClassification", "RobertaConfig", ENCODER | {"num_labels": 4}),
    "roberta-choices": ("RobertaForMultipleChoice", "RobertaConfig", ENCODER),
    "roberta-spans": ("RobertaForQuestionAnswering", "RobertaConfig", ENCODER),
    "distilbert-mlm": ("DistilBertForMaskedLM", "DistilBertConfig", DISTIL),
    "distilbert-encoder": ("DistilBertModel", "DistilBertConfig", DISTIL | {"activation": "relu"}),
    "distilbert-classes": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL | {"num_labels": 3}),
    "distilbert-tags": ("DistilBertForTokenClassification", "DistilBertConfig", DISTIL | {"num_labels": 3}),
    "distilbert-choices": ("DistilBertForMultipleChoice", "DistilBertConfig", DISTIL),
    "distilbert-spans": ("DistilBertForQuestionAnswering", "DistilBertConfig", DISTIL),
    "albert": ("AlbertForPreTraining", "AlbertConfig", ENCODER | {"embedding_size": 8}),
    "albert-2-groups": (
        "AlbertForMaskedLM", "AlbertConfig",
        ENCODER | {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "hidden_act": "gelu"},
    ),
    "albert-encoder": ("AlbertModel", "AlbertConfig", ENCODER | {"embedding_size": 8}),
    "albert-classes": ("AlbertForSequenceClassification", "AlbertConfig", ENCODER | {"embedding_size": 8}),
    "albert-tags": ("AlbertForTokenClassification", "AlbertConfig", ENCODER | {"embedding_size": 8}),
    "albert-spans": ("AlbertForQuestionAnswering", "AlbertConfig", ENCODER | {"embedding_size": 8}),
    "electra-generator": ("ElectraForMaskedLM", "ElectraConfig", ENCODER | {"embedding_size": 8}),
    "electra-discriminator": ("ElectraForPreTraining", "ElectraConfig", ENCODER | {"embedding_size": 8}),
    "electra-discriminator-wide": (
        "ElectraForPreTraining", "ElectraConfig", ENCODER | {"embedding_size": 24, "hidden_act": "relu"},
    ),
    "electra-classes": ("ElectraForSequenceClassification", "ElectraConfig", ENCODER | {"embedding_size": 8}),
    "electra-tags": ("ElectraForTokenClassification", "ElectraConfig", ENCODER | {"embedding_size": 8}),
    "electra-choices": ("ElectraForMultipleChoice", "ElectraConfig", ENCODER | {"embedding_size": 8}),
    "electra-spans": ("ElectraForQuestionAnswering", "ElectraConfig", ENCODER | {"embedding_size": 24}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt2-classes": ("GPT2ForSequenceClassification", "GPT2Config", GPT | {"num_labels": 3, "pad_token_id": 0}),
    "gpt2-decoder-narrow": ("GPT2Model", "GPT2Config", GPT | {"n_inner": 30, "activation_function": "gelu"}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5-unequal": (
        "T5ForConditionalGeneration", "T5Config",
        T5 | {"num_decoder_layers": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    ),
    "t5-model": ("T5Model", "T5Config", T5),
    "t5-v1.1": (
        "T5ForConditionalGeneration", "T5Config",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5-gated-silu": ("T5ForConditionalGeneration", "T5Config", T5 | {"feed_forward_proj": "gated-silu"}),
    "xlm-roberta-mlm": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", ENCODER | {"type_vocab_size": 1}),
    "xlm-roberta-classes": ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", ENCODER | {"num_labels": 3}),
    "camembert-mlm": ("CamembertForMaskedLM", "CamembertConfig", ENCODER | {"type_vocab_size": 1}),
    "camembert-tags": ("CamembertForTokenClassification", "CamembertConfig", ENCODER | {"num_labels": 3}),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", T5 | {"feed_forward_proj": "gated-gelu"}),
    "switch": ("SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", SWITCH),
    "switch-all-sparse-overflowing": (
        "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig",
        SWITCH | {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 4, "expert_capacity": 3},
    ),
    "vit": ("ViTModel", "ViTConfig", VIT),
    "vit-wide-images-gray": ("ViTModel", "ViTConfig", VIT | {"image_size": [8, 16], "num_channels": 1}),
    "vit-classes-quick-gelu": (
        "ViTForImageClassification", "ViTConfig", VIT | {"num_labels": 5, "hidden_act": "quick_gelu"},
    ),
    "captioner-gpt2": (
        "VisionEncoderDecoderModel", "VisionEncoderDecoderConfig", CAPTIONER | {"decoder": GPT_WRITER},
    ),
    "captioner-gpt2-narrow": (
        "VisionEncoderDecoderModel", "VisionEncoderDecoderConfig",
        CAPTIONER | {"decoder": GPT_WRITER | {"n_embd": 16, "n_head": 2}},
    ),
    "captioner-bert": (
        "VisionEncoderDecoderModel", "VisionEncoderDecoderConfig", CAPTIONER | {"decoder": BERT_WRITER},
    ),
    "captioner-bert-wide": (
        "VisionEncoderDecoderModel", "VisionEncoderDecoderConfig",
        CAPTIONER | {"decoder": BERT_WRITER | {"hidden_size": 32, "num_attention_heads": 4, "hidden_act": "gelu_new"}},
    ),
}  # fmt: skip

OWN_MATRIX = ("t5-v1.1", "mt5")
"""cases whose output matrix is not tied to the embedding"""


def make(name: str):
    """The random model of a case, every parameter away from its initial zeros and ones."""
    architecture, config_class, settings = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, architecture)._from_config(config, attn_implementation="eager").eval()
    if name in OWN_MATRIX:  # released checkpoints have an output matrix of their own
        model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape) * 0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def save(model, path: Path, name: str) -> None:
    """Writes the model as a user would find it."""
    model.save_pretrained(path)
    if name in OWN_MATRIX:
        # Files of v1.1 say so by this field; and saving drops a matrix that is declared tied.
        import safetensors.numpy

        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        tensors = safetensors.numpy.load_file(path / "model.safetensors")
        tensors["lm_head.weight"] = model.lm_head.weight.detach().numpy()
        safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
