"""Generation: sampling follows its distribution, batches do not matter, texts stop where they should."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.decoding import Decoding, Stops, adjust, choose
from bertgpt.inference.generate import generate, generate_ids
from bertgpt.inference.model import Model, load
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.types import Inputs, UserError

SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 48}
CONFIGS = {"gpt": GptConfig(**SIZE, stddev=0.3), "t5": T5Config(**SIZE, num_decoder_layers=2, head_dim=8)}
PROMPTS = ["the cat", "a dog runs under the tree", "river", "the big green house sings of the small blue bird"]


def init(config) -> dict:
    ids = jnp.zeros((1, 4), jnp.int32)
    inputs = Inputs(ids, decoder=Inputs(ids))
    return jax.jit(lambda: nn.unbox(config.make().init(jax.random.key(0), inputs)["params"]))()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tokenizer: Tokenizer, tmp_path_factory) -> Model:
    config = CONFIGS[request.param]
    path = tmp_path_factory.mktemp("model")
    return Model(config, tokenizer, make_apply(config.make()), init(config), path)


SAMPLING = Decoding(max_new_tokens=12, temperature=1.0, top_k=20, seed=3)


@pytest.mark.parametrize(
    "decoding", [Decoding(12), SAMPLING, Decoding(12, num_beams=3)], ids=["greedy", "sampling", "beams"]
)
def test_a_prompt_gets_the_same_text_alone_and_in_any_batch(model: Model, decoding: Decoding):
    together = list(generate(model, PROMPTS, decoding))
    alone = [next(generate(model, [prompt], decoding)) for prompt in PROMPTS]
    pairs = list(generate(model, PROMPTS[::-1], decoding, batch_size=3))[::-1]
    for a, b, c in zip(together, alone, pairs, strict=True):
        assert a[0].text == b[0].text == c[0].text
        assert a[0].score == pytest.approx(b[0].score, rel=1e-4) == pytest.approx(c[0].score, rel=1e-4)


def test_seeds_and_returns_differ_and_repeat(model: Model):
    decoding = dataclasses.replace(SAMPLING, num_return_sequences=3)
    (first,), (second,) = (list(generate(model, PROMPTS[:1], decoding)) for _ in range(2))
    assert first == second and len({item.text for item in first}) == 3
    (other,) = generate(model, PROMPTS[:1], dataclasses.replace(decoding, seed=4))
    assert {item.text for item in other} != {item.text for item in first}


@pytest.mark.slow
def test_the_first_tokens_of_many_samples_follow_softmax(model: Model):
    """Total variation between 4,000 samples and the distribution itself, which independent draws keep below 0.1."""
    decoding = Decoding(max_new_tokens=1, temperature=0.7, num_return_sequences=4000)
    stops = Stops((), 0, model.config.vocab_size)
    prompt = [5, 6, 7]
    (outputs,) = generate_ids(model.apply, model.params, model.config, [prompt], decoding, stops)
    ids = jnp.asarray([prompt])
    decoder = Inputs(jnp.asarray([[model.config.start_id]])) if isinstance(model.config, T5Config) else None
    hidden = model.apply(model.params, Inputs(ids, decoder=decoder))
    logits = model.apply(model.params, method="lm_logits", hidden=hidden[0, -1])
    expected = np.asarray(jax.nn.softmax(logits / 0.7))
    observed = np.bincount([o.ids[0] for o in outputs], minlength=len(expected)) / 4000
    assert np.abs(observed - expected).sum() / 2 < 0.1
    log_p = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose([o.score for o in outputs[:20]], [log_p[o.ids[0]] for o in outputs[:20]], rtol=1e-4)


@pytest.mark.parametrize(
    "settings, allowed",
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0, 1}),  # 0.5 + 0.2 is the first sum to reach 0.6
        ({"top_p": 0.5}, {0}),
        ({"min_p": 0.35}, {0, 1}),  # at least 0.175
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.8}, {0, 1}),  # of the three, 0.5 / 0.85 and 0.2 / 0.85 suffice
        ({}, {0, 1, 2, 3, 4}),
    ],
)
def test_sampling_draws_exactly_from_what_its_rules_allow(settings, allowed):
    p = np.asarray([0.5, 0.2, 0.15, 0.1, 0.05])
    order = np.asarray([3, 0, 4, 1, 2])  # so that nothing is sorted already
    scores = jnp.log(jnp.asarray(p[np.argsort(order)], jnp.float32))
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(choose(jnp.tile(scores, (20_000, 1)), keys, Decoding(temperature=1.0, **settings)))
    rank = np.argsort(order)[drawn]
    assert set(rank.tolist()) == allowed
    kept = p[sorted(allowed)] / p[sorted(allowed)].sum()
    np.testing.assert_allclose(np.bincount(rank, minlength=5)[sorted(allowed)] / 20_000, kept, atol=0.012)


def test_rules_about_earlier_tokens_are_those_of_a_naive_transcription(rng):
    tokens = rng.integers(0, 6, (4, 14))
    starts, end = np.asarray([0, 2, 5, 8]), 11
    scores = rng.normal(size=(4, 9)).astype(np.float32)
    d = Decoding(repetition_penalty=1.5, no_repeat_ngram_size=3, min_new_tokens=4)
    got = adjust(jnp.asarray(scores), jnp.asarray(tokens), jnp.asarray(starts), end, 3, d, (7, 8))
    for row in range(4):
        seen = tokens[row, starts[row] : end].tolist()
        expected = scores[row].copy()
        for v in set(seen):
            expected[v] = expected[v] * 1.5 if expected[v] < 0 else expected[v] / 1.5
        for i in range(len(seen) - 2):
            if seen[i : i + 2] == seen[-2:]:
                expected[seen[i + 2]] = -np.inf
        expected[[7, 8]] = -np.inf
        np.testing.assert_allclose(got[row], expected, rtol=1e-6)


def test_texts_end_at_stop_strings_which_are_cut_off(model: Model):
    decoding = dataclasses.replace(SAMPLING, max_new_tokens=24)
    (whole,) = next(generate(model, PROMPTS[:1], decoding))
    stop = whole.text.split()[3]
    (stopped,) = next(generate(model, PROMPTS[:1], decoding, stop=[stop]))
    assert stopped.ended and stopped.text == whole.text[: whole.text.index(stop)]


def test_streamed_pieces_add_up_to_the_text(model: Model):
    pieces: dict[tuple[int, int], str] = {}
    calls = []

    def show(prompt: int, number: int, text: str) -> None:
        pieces[prompt, number] = pieces.get((prompt, number), "") + text
        calls.append(prompt)

    decoding = dataclasses.replace(SAMPLING, max_new_tokens=24, num_return_sequences=2)
    stop = [next(generate(model, PROMPTS[:1], decoding))[0].text.split()[5]]
    outputs = list(generate(model, PROMPTS[:3], decoding, stop=stop, on_text=show, batch_size=2))
    assert pieces == {(i, k): o.text for i, row in enumerate(outputs) for k, o in enumerate(row) if o.text}
    assert len(calls) > len(pieces)  # it came in pieces


def test_special_tokens_can_stop_and_minimal_length_holds_them_back(model: Model):
    decoding = Decoding(max_new_tokens=16, temperature=3.0, num_return_sequences=40)
    (free,) = generate(model, PROMPTS[:1], decoding, stop=["[MASK]", "[PAD]", "[UNK]"])
    (held,) = generate(
        model, PROMPTS[:1], dataclasses.replace(decoding, min_new_tokens=16), stop=["[MASK]", "[PAD]", "[UNK]"]
    )
    assert any(item.ended for item in free) and not any(item.ended for item in held)


def test_padding_of_the_vocabulary_is_never_chosen(model: Model):
    decoding = Decoding(max_new_tokens=40, temperature=50.0)
    stops = Stops((), 0, 100)
    (outputs,) = generate_ids(model.apply, model.params, model.config, [[5, 6]], decoding, stops)
    assert max(outputs[0].ids) < 100


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"min_new_tokens": 65}, "min_new_tokens=65 exceeds max_new_tokens=64"),
        ({"temperature": 1.0, "num_beams": 2}, "beam search does not sample"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 needs sampling"),
        ({"top_p": 0.0}, "top_p=0.0 must lie in"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"temperature": -1.0}, "must not be negative"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        Decoding(**settings)


def test_prompts_that_cannot_be_continued_are_refused_by_number(tokenizer: Tokenizer, tmp_path):
    config = CONFIGS["gpt"]
    model = Model(config, tokenizer, make_apply(config.make()), init(config), tmp_path)
    with pytest.raises(UserError, match="prompt 2 is empty"):
        list(generate(model, ["the", ""], Decoding(4)))
    with pytest.raises(UserError, match="asks for 64 more, but the model's context is 48"):
        list(generate(model, ["the"]))
    with pytest.raises(UserError, match=r"lower max_new_tokens to \d+"):
        list(generate(model, [PROMPTS[3]], Decoding(40)))
    with pytest.raises(UserError, match="beam search can neither stream"):
        list(generate(model, ["the"], Decoding(4, num_beams=2), on_text=print))
    encoder = BertConfig(**SIZE)
    with pytest.raises(UserError, match="Bert is an encoder and generates no text"):
        list(generate(model._replace(config=encoder), ["the"]))
    with pytest.raises(UserError, match="has no tokenizer"):
        list(generate(model._replace(tokenizer=None), ["the"]))


@pytest.mark.slow
def test_the_command_generates_from_a_hugging_face_directory(tokenizer: Tokenizer, tmp_path, capsys):
    from bertgpt.cli.main import main

    config = CONFIGS["gpt"]
    export_model(tmp_path / "gpt", config, init(config), files=tokenizer.files())
    model = load(tmp_path / "gpt")
    (expected,) = next(generate(model, ["the cat"], Decoding(8)))
    command = ["generate", str(tmp_path / "gpt"), "--max_new_tokens", "8"]
    assert main([*command, "--prompt", "the cat"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["prompt"] == "the cat" and line["text"] == expected.text
    assert main([*command, "--prompt", "the cat", "--stream"]) == 0
    assert capsys.readouterr().out == expected.text + "\n"
    (tmp_path / "in.jsonl").write_text('{"prompt": "the cat", "id": 7}\n{"prompt": "river"}\n')
    assert main([*command, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0]["id"] == 7 and lines[0]["text"] == expected.text and len(lines) == 2
    assert main([*command, "--prompt", ""]) == 2
    assert "prompt 1 is empty" in capsys.readouterr().err
    assert main([*command, "--prompt", "a", "--temperature", "warm"]) == 2
