"""config.json of strangers: wrong types, absent fields, fields that change nothing, labels by their keys."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from random_models import BERT, GPT, T5, classifier, edit_config, edit_tensors, random_params

from bertgpt.cli.main import main
from bertgpt.convert.hub import export_model, import_model
from bertgpt.convert.settings import IGNORED, NEUTRAL, REASONS
from bertgpt.data.tokenizer import ByteBPE
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.export import convert
from bertgpt.inference.generate import generate, stops_of
from bertgpt.inference.model import load
from bertgpt.types import Labels, UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return classifier(tmp_path_factory.mktemp("hub") / "bert")


@pytest.fixture
def hub(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "bert"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": {}}, "architectures={} must be a list of names"),
        ({"architectures": "BertModel"}, "architectures='BertModel' must be a list of names"),
        ({"architectures": [{}]}, r"architectures=\[{}\] must be a list of names"),
        ({"architectures": ["Foo"]}, "architecture 'Foo' is not supported; only BertModel"),
        ({"model_type": []}, r"model_type=\[\] is not supported; only bert"),
        ({"model_type": {}}, "model_type={} is not supported; only bert"),
        ({"model_type": "x" * 10**6}, "model_type='xxx.*' is not supported; only bert"),
        ({"model_type": ...,  "architectures": ...}, "model_type=None is not supported; only bert"),
        ({"vocab_size": 1e12}, "vocab_size=1000000000000.0 must be int"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000 must lie between 0 and 2,147,483,647"),
        ({"vocab_size": 10**6}, r"the weights have \(40, 8\) for embeddings/token, .* asks for \(1000000, 8\)"),
        ({"vocab_size": True}, "vocab_size=True must be int"),
        ({"vocab_size": None}, "vocab_size=None must be int"),
        ({"vocab_size": "40"}, "vocab_size='40' must be int"),
        ({"vocab_size": [[[]]] * 10**5}, "vocab_size=.* must be int"),
        ({"hidden_size": -8}, "hidden_size=-8 must lie between 0 and"),
        ({"hidden_size": 9}, "d_model=9 is not divisible by num_heads=2"),
        ({"num_hidden_layers": 10**9}, "num_layers=1000000000 must be at most 1,000"),
        ({"num_hidden_layers": 0}, "num_layers=0 must be at least 1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan must lie between"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps=inf must lie between"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps='1e-12' must be int or float"),
        ({"hidden_dropout_prob": 1.5}, r"dropout=1.5 must lie in \[0, 1\)"),
        ({"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\] must be str"),
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported; only gelu, "),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder=True is not supported; only False"),
        ({"is_decoder": 0}, "is_decoder=0 is not supported; only False"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported; only None"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads=.* is not supported"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be bool"),
        ({"rope_theta": 1e4}, "unknown field rope_theta=10000.0; if it does not change the model, remove it"),
        ({"use_bias": None}, "unknown field use_bias=None"),
        ({"problem_type": "ranking"}, "problem_type='ranking' is not supported; only single_label"),
        ({"problem_type": 3}, "problem_type=3 is not supported"),
        ({"id2label": ["a", "b", "c"]}, r"id2label=\['a', 'b', 'c'\] must be an object"),
        ({"id2label": {"0": "a", "2": "c"}}, "id2label does not name class 1, but the classifier has 3 outputs"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "id2label names class 3, but the classifier has 3 outputs"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label does not name class 2"),
        ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}}, "id2label names class 3"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "classes 0 and 2 the same name, 'a'"),
        ({"id2label": {"0": "a", "1": "b", "02": "c", "2": "d"}}, "id2label names class 2 twice"),
        ({"id2label": {"zero": "a", "1": "b", "2": "c"}}, "id2label: 'zero' is not the number of a class"),
        ({"id2label": {"²": "a", "1": "b", "2": "c"}}, "id2label: '²' is not the number of a class"),
        ({"id2label": {"9" * 5000: "a", "1": "b", "2": "c"}}, "id2label: '999.*' is not the number of a class"),
        ({"id2label": {"0": ["a"], "1": "b", "2": "c"}}, r"id2label: \['a'\] is not the name of a class"),
        ({"id2label": ..., "num_labels": 2}, "num_labels=2, but the classifier has 3 outputs"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line_by_field(hub: Path, changes, message: str):
    edit_config(hub, **changes)
    with pytest.raises(UserError, match=message) as caught:
        import_model(hub)
    assert str(caught.value).startswith(str(hub)) and "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "name, value", [("summary_type", "mean"), ("summary_activation", "tanh"), ("summary_use_proj", False)]
)
def test_choices_of_electra_are_scored_from_the_first_state_or_refused(name: str, value: object, tmp_path: Path):
    config = dataclasses.replace(BERT, embed_dim=4, pooler="dropout_gelu")
    params = random_params(config, "class_logits")
    params["classifier"]["dense"] = {key: value[..., :1] for key, value in params["classifier"]["dense"].items()}
    export_model(tmp_path / "hub", config, params, architecture="ElectraForMultipleChoice")
    edit_config(tmp_path / "hub", summary_type="first", summary_activation="gelu", summary_last_dropout=0.5)
    import_model(tmp_path / "hub")
    edit_config(tmp_path / "hub", **{name: value})
    with pytest.raises(UserError, match=f"{name}={value!r} is not supported; only "):
        import_model(tmp_path / "hub")


@pytest.mark.parametrize("content", [b"[]", b"3", b"", b"{", b"[" * 10**5, b'{"a": ' * 5000, b"\xff\xfe{\0}\0"])
def test_a_config_that_is_no_object_is_refused(hub: Path, content: bytes):
    (hub / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json: (cannot be read as JSON|does not hold a JSON object)") as caught:
        import_model(hub)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, shown",
    [
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
        ({"id2label": {"10": "x"} | {str(i): f"c{i}" for i in range(10)}}, None),
        ({"id2label": {"0": 0, "1": 1.5, "2": "b"}}, ("0", "1.5", "b")),
        ({"id2label": None, "label2id": None}, ()),
        ({"id2label": ..., "label2id": ..., "_num_labels": 3}, ()),
    ],
)
def test_labels_are_read_by_key(hub: Path, changes, shown):
    if shown is None:  # eleven classes: "10" stands after "9", not after "1"
        shown = (*(f"c{i}" for i in range(10)), "x")
        edit_tensors(hub, lambda t: t | {k: np.resize(t[k], (11, *t[k].shape[1:])) for k in t if "classifier" in k})
    edit_config(hub, **changes)
    assert import_model(hub).labels == Labels(shown, kind="label")


@pytest.mark.parametrize(
    "problem, kind",
    [
        ("multi_label_classification", "labels"), ("regression", "number"), ("single_label_classification", "label"),
        (None, "label"), (..., "label"),
    ],
)  # fmt: skip
def test_the_problem_type_says_what_the_outputs_mean(hub: Path, problem, kind: str):
    edit_config(hub, problem_type=problem)
    assert import_model(hub).labels.kind == kind


def test_one_class_without_a_problem_type_is_a_probability_of_its_own(hub: Path):
    edit_tensors(hub, lambda t: {k: v[:1] if "classifier" in k else v for k, v in t.items()})
    edit_config(hub, id2label=..., label2id=..., problem_type=...)
    assert import_model(hub).labels.kind == "labels"


def test_fields_that_change_nothing_are_accepted_each_with_a_reason(source: Path, hub: Path):
    read = {"architectures", "model_type", "id2label", "label2id", "num_labels", "_num_labels", "problem_type",
            "initializer_range", "classifier_dropout"}  # fmt: skip
    edit_config(hub, **{field: [{"a": 1}] for field in REASONS.keys() - read})
    edit_config(hub, **{field: values[0] for field, values in NEUTRAL.items()})
    found = import_model(hub)
    assert found.config == BERT == import_model(source).config
    assert not NEUTRAL.keys() & REASONS.keys() and len(REASONS) == sum(len(v.split()) for v in IGNORED.values())


def test_a_synonym_stands_for_a_field_and_may_not_contradict_it(tmp_path: Path):
    export_model(tmp_path / "gpt", GPT, random_params(GPT))
    edit_config(tmp_path / "gpt", n_embd=..., hidden_size=8, n_layer=..., num_hidden_layers=2)
    assert import_model(tmp_path / "gpt").config == GPT
    edit_config(tmp_path / "gpt", n_embd=16)
    with pytest.raises(UserError, match="hidden_size=8 contradicts n_embd=16"):
        import_model(tmp_path / "gpt")


def test_untied_embeddings_matter_only_where_tokens_are_predicted(hub: Path, tmp_path: Path):
    edit_config(hub, tie_word_embeddings=False)
    import_model(hub)
    mlm = tmp_path / "mlm"
    export_model(mlm, BERT, random_params(BERT, "mlm_logits"), architecture="BertForMaskedLM")
    edit_config(mlm, tie_word_embeddings=False)
    refused = "tie_word_embeddings=False is not supported: cls.predictions.decoder.weight must equal"
    with pytest.raises(UserError, match=refused):
        import_model(mlm)
    words, matrix = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    edit_tensors(mlm, lambda t: t | {matrix: t[words].copy()})
    import_model(mlm)
    edit_tensors(mlm, lambda t: t | {matrix: t[words] + 1})
    with pytest.raises(UserError, match=refused):
        import_model(mlm)
    edit_config(mlm, tie_word_embeddings=True)
    with pytest.raises(UserError, match="cls.predictions.decoder.weight differs from"):
        import_model(mlm)
    edit_config(mlm, architectures=["BertModel"])  # which does not read the matrix
    assert matrix in import_model(mlm).report["unused"]


def test_a_t5_with_an_output_matrix_of_its_own_must_say_so(tmp_path: Path):
    export_model(tmp_path / "t5", T5, random_params(T5))
    edit_tensors(tmp_path / "t5", lambda t: t | {"lm_head.weight": t["shared.weight"] + 1})
    with pytest.raises(UserError, match="lm_head.weight differs from shared.weight; the model ties the two"):
        import_model(tmp_path / "t5")
    edit_config(tmp_path / "t5", tie_word_embeddings=False)
    assert not import_model(tmp_path / "t5").config.tied


# -- generation_config.json -------------------------------------------------------------------------------------------


@pytest.fixture
def gpt(tokenizer, tmp_path: Path) -> Path:
    config = dataclasses.replace(GPT, vocab_size=tokenizer.vocab.size)
    export_model(tmp_path / "gpt", config, random_params(config), files=tokenizer.files())
    return tmp_path / "gpt"


def write_generation_config(path: Path, **values: object) -> None:
    (path / "generation_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "config, generation, expected",
    [
        ({"eos_token_id": 7}, None, (7,)),
        ({"eos_token_id": [7, 9, 7]}, None, (7, 9)),
        ({"eos_token_id": 7}, {"eos_token_id": [11, 12]}, (11, 12)),
        ({"eos_token_id": 7}, {"eos_token_id": None}, (7,)),
        ({"eos_token_id": 7}, {}, (7,)),
        ({"eos_token_id": 50_256}, None, None),
        ({"eos_token_id": None}, None, None),
        ({"eos_token_id": [50_256, 5]}, None, (5,)),
    ],
)
def test_texts_end_where_the_directory_says(gpt: Path, config, generation, expected, tmp_path: Path):
    edit_config(gpt, **config)
    if generation is not None:
        write_generation_config(gpt, **generation)
    model = load(gpt, arrange="host")
    own = stops_of(model.tokenizer).tokens
    assert stops_of(model.tokenizer, (), model.stop_ids).tokens == (expected or own) and own
    convert(model, tmp_path / "ours")
    assert load(tmp_path / "ours", arrange="host").stop_ids == model.stop_ids


def test_decoding_follows_generation_config_unless_the_caller_says_otherwise(gpt: Path):
    settings = {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 0.6, "early_stopping": True}
    write_generation_config(gpt, **settings, max_new_tokens=5, temperature=0.3, top_k=9)  # no do_sample
    model = load(gpt)
    assert model.decoding == Decoding(max_new_tokens=5, **settings)
    (own,), (same,) = (next(generate(model, ["the cat"], d)) for d in (None, model.decoding))
    assert own == same
    write_generation_config(gpt, do_sample=True, temperature=0.3)
    assert load(gpt, arrange="host").decoding == Decoding(temperature=0.3, top_k=50)


def test_the_command_follows_generation_config_where_no_flag_is_given(gpt: Path, capsys: pytest.CaptureFixture):
    write_generation_config(gpt, num_beams=3, num_return_sequences=3, max_new_tokens=5, no_repeat_ngram_size=2)
    model = load(gpt)

    def texts(*flags: str) -> list[str]:
        assert main(["generate", str(gpt), "--prompt", "the cat", *flags]) == 0
        return [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]

    assert texts() == [text.text for text in next(generate(model, ["the cat"], model.decoding))]
    # Flags count even where they give the usual value.
    flags = ["--num_beams", "1", "--num_return_sequences=1", "--no-repeat-ngram-size", "0"]
    assert texts(*flags) == [next(generate(model, ["the cat"], Decoding(max_new_tokens=5)))[0].text]
    assert main(["generate", str(gpt), "--prompt", "the cat", "--temperature", "0.5"]) == 2
    assert "give either temperature or num_beams; " in capsys.readouterr().err


def test_what_generation_config_asks_in_vain_is_logged(gpt: Path, caplog):
    write_generation_config(gpt, forced_eos_token_id=3, bad_words_ids=[], typical_p=1.0, num_beams=2, do_sample=True)
    assert load(gpt, arrange="host").decoding == Decoding()
    assert "forced_eos_token_id=3 is not supported, and ignored" in caplog.text and "typical_p" not in caplog.text
    assert "greedy search is the default: beam search does not sample" in caplog.text


@pytest.mark.parametrize(
    "values, message",
    [
        ({"eos_token_id": "7"}, "generation_config.json: eos_token_id='7' must be a token id or a list"),
        ({"eos_token_id": [7, None]}, "must be a token id or a list"),
        ({"eos_token_id": {"a": 1}}, "must be a token id or a list"),
        ({"eos_token_id": -1}, "must be a token id or a list"),
        ({"eos_token_id": True}, "must be a token id or a list"),
        ({"decoder_start_token_id": [1, 2]}, "must be one token"),
    ],
)
def test_senseless_end_tokens_are_refused(gpt: Path, values, message: str):
    write_generation_config(gpt, **values)
    with pytest.raises(UserError, match=message):
        load(gpt, arrange="host")
    (gpt / "generation_config.json").unlink()
    os.mkfifo(gpt / "generation_config.json")
    with pytest.raises(UserError, match="generation_config.json: is a pipe or device"):
        load(gpt, arrange="host")


def test_the_decoder_starts_with_the_token_of_generation_config(tmp_path: Path):
    export_model(tmp_path / "t5", T5, random_params(T5))
    assert load(tmp_path / "t5", arrange="host").config.start_id == 0
    write_generation_config(tmp_path / "t5", decoder_start_token_id=5)
    assert load(tmp_path / "t5", arrange="host").config.start_id == 5


def test_an_exported_gpt_ends_texts_with_its_tokenizers_token(tmp_path: Path):
    words = ByteBPE(vocab_size=290, style="gpt2").make(lambda: iter(["the cat sat on the mat"] * 5))
    padded = dataclasses.replace(GPT, vocab_size=320)
    params = random_params(padded)
    export_model(tmp_path / "a", padded, params, vocab_size=words.vocab.size, files=words.files())
    export_model(tmp_path / "b", padded, params)
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert first["architectures"] == ["GPT2LMHeadModel"]
    assert first["eos_token_id"] == words.vocab.eos < first["vocab_size"] == words.vocab.size
    assert second["eos_token_id"] is None and second["bos_token_id"] is None
