"""The real openai client against a live server: embeddings, completions and chats, streamed too."""

import base64
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import openai
import pytest

from bertgpt.inference.decoding import Decoding
from bertgpt.inference.encode import embed
from bertgpt.inference.generate import continue_ids, generate, generate_ids, prompt_ids, stops_of
from bertgpt.inference.model import Model
from bertgpt.serving.chat_template import PLAIN_STOP, plain_prompt
from bertgpt.serving.served import Served
from bertgpt.types import Inputs

TEXTS = ["the cat runs", "a big dog sleeps under the tree and sings"]


@pytest.fixture(scope="module")
def ai(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models_are_listed_with_what_they_can_do(ai: openai.OpenAI, served: dict[str, Served]):
    models = {item.id: item for item in ai.models.list()}
    assert list(models) == list(served) and models["bert"].mask == "[MASK]" and models["gpt"].mask is None
    assert models["t5"].architecture == "encoder_decoder" and "summarize" in models["t5"].capabilities
    assert models["classes"].labels == ["bad", "so", "good"] and ai.models.retrieve("gpt") == models["gpt"]
    with pytest.raises(openai.NotFoundError, match="there is no model '../secret'"):
        ai.models.retrieve("../secret")


def test_embeddings_are_those_of_the_offline_api_in_every_form(ai: openai.OpenAI, served: dict[str, Served]):
    model = served["bert"].model
    want = embed(model, TEXTS)
    ids = framed_ids(model, TEXTS)
    for given in (TEXTS, ids):
        for form in ("base64", "float"):
            found = ai.embeddings.create(model="bert", input=given, encoding_format=form)
            vectors = [read(item.embedding) for item in found.data]
            np.testing.assert_allclose(vectors, want, atol=1e-6)
            assert [item.index for item in found.data] == [0, 1] and found.model == "bert"
            assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, ids))
    for given in (TEXTS[0], ids[0]):
        found = ai.embeddings.create(model="bert", input=given, dimensions=5)
        np.testing.assert_allclose(found.data[0].embedding, want[0, :5] / np.linalg.norm(want[0, :5]), atol=1e-6)


def read(embedding: str | list[float]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else np.asarray(embedding)


def framed_ids(model: Model, texts: list[str]) -> list[list[int]]:
    before, after = model.tokenizer.template
    return [[*before, *row, *after] for row in model.tokenizer.encode(texts)]


@pytest.mark.parametrize("given", [["a", [3]], [["a"]], [3, "a"], [], [[]], [10_000], [True], {}, 3.5])
def test_inputs_of_no_known_form_are_refused(ai: openai.OpenAI, given):
    with pytest.raises(openai.UnprocessableEntityError):
        ai.embeddings.create(model="bert", input=given)


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_greedy_completions_are_those_of_the_offline_api(ai: openai.OpenAI, served: dict[str, Served], name: str):
    want = [row[0].text for row in generate(served[name].model, TEXTS, Decoding(12))]
    found = ai.completions.create(model=name, prompt=TEXTS, max_tokens=12, temperature=0, n=2)
    assert [choice.text for choice in found.choices] == [want[0], want[0], want[1], want[1]]
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in found.choices} <= {"stop", "length"}
    assert found.usage.prompt_tokens == sum(map(len, prompt_ids(served[name].model, TEXTS)))
    assert 0 < found.usage.completion_tokens <= 48
    with ai.completions.create(model=name, prompt=TEXTS, max_tokens=12, temperature=0, n=2, stream=True) as chunks:
        texts, reasons = ["", "", "", ""], {}
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].text
            reasons[chunk.choices[0].index] = chunk.choices[0].finish_reason
    assert texts == [choice.text for choice in found.choices]
    assert [reasons[i] for i in range(4)] == [choice.finish_reason for choice in found.choices]


def test_samples_repeat_with_the_seed_and_differ_without(ai: openai.OpenAI):
    def texts(**more) -> list[str]:
        return [item.text for item in ai.completions.create(model="gpt", prompt="the cat", n=3, **more).choices]

    assert texts(seed=5) == texts(seed=5) != texts(seed=6) and len(set(texts(seed=5))) == 3
    assert texts() != texts() and texts(seed=-1) == texts(seed=2**32 - 1)


def test_texts_end_before_stop_strings_also_in_a_stream(ai: openai.OpenAI):
    asked = {"model": "gpt", "prompt": "the cat", "max_tokens": 16, "temperature": 0}
    whole = ai.completions.create(**asked).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    cut = ai.completions.create(**asked, stop=[stop]).choices[0]
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    chunks = list(ai.completions.create(**asked, stop=stop, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == cut.text
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > chunks[-1].usage.prompt_tokens


def log_softmax(model: Model, ids: list[int]) -> np.ndarray:
    """log p of the next token at each position, in float64."""
    logits = model.apply(model.params, method="lm_logits", hidden=model.apply(model.params, Inputs(jnp.asarray([ids]))))
    logits = np.asarray(logits[0, :, : model.tokenizer.vocab.size], np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_log_probabilities_are_those_of_one_forward_pass_echo_included(ai: openai.OpenAI, served: dict[str, Served]):
    model = served["gpt"].model
    prompt = prompt_ids(model, TEXTS[:1])[0]
    asked = {"model": "gpt", "prompt": TEXTS[0], "temperature": 0}
    found = ai.completions.create(**asked, max_tokens=9, logprobs=3, echo=True).choices[0]
    plain = ai.completions.create(**asked, max_tokens=9).choices[0]
    assert found.text == TEXTS[0] + plain.text
    stops = stops_of(model.tokenizer, (), model.stop_ids)
    output = generate_ids(model.apply, model.params, model.config, [prompt], Decoding(9), stops)[0][0].ids
    log_p = log_softmax(model, [*prompt, *output])
    want = [log_p[i, token] for i, token in enumerate([*prompt, *output][1:])]
    assert found.logprobs.token_logprobs[0] is None and found.logprobs.top_logprobs[0] is None
    np.testing.assert_allclose(found.logprobs.token_logprobs[1:], want, atol=1e-4)
    best = np.sort(log_p[: len(want)], axis=-1)[:, ::-1][:, :3]
    for top, values in zip(found.logprobs.top_logprobs[1:], best, strict=True):
        np.testing.assert_allclose(sorted(top.values(), reverse=True), values[: len(top)], atol=1e-4)
    tokens, tops = found.logprobs.tokens, found.logprobs.top_logprobs
    assert "".join(tokens) == found.text and len(tokens) == len(prompt) + len(output)
    assert [found.text[at:][: len(t)] for at, t in zip(found.logprobs.text_offset, tokens, strict=True)] == tokens
    assert found.logprobs.text_offset[len(prompt)] == len(TEXTS[0])
    for i in range(len(prompt), len(tokens)):  # greedy: the first, by its own name
        assert next(iter(tops[i])) == tokens[i] and tops[i][tokens[i]] == found.logprobs.token_logprobs[i]
    chunks = list(ai.completions.create(**asked, max_tokens=9, logprobs=3, stream=True))
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert [t for part in streamed for t in part.tokens] == tokens[len(prompt) :] and len(chunks) > 1
    assert [t for part in streamed for t in part.top_logprobs] == tops[len(prompt) :]
    offsets = [len(TEXTS[0]) + at for part in streamed for at in part.text_offset]
    assert offsets == found.logprobs.text_offset[len(prompt) :]
    scored = ai.completions.create(**asked, max_tokens=0, logprobs=0, echo=True).choices[0]
    assert scored.text == TEXTS[0] and scored.logprobs.token_logprobs[1:] == pytest.approx(
        want[: len(prompt) - 1], abs=1e-4
    )


def continue_ids_of(model: Model, prompt: list[int], count: int) -> list[list[int]]:
    from bertgpt.inference.generate import generate_ids, stops_of

    stops = stops_of(model.tokenizer, (), model.stop_ids)
    return [
        row[0].ids for row in generate_ids(model.apply, model.params, model.config, [prompt], Decoding(count), stops)
    ]


def test_the_best_of_several_samples_has_the_highest_mean_log_probability(ai: openai.OpenAI):
    asked = {"model": "gpt", "prompt": "the cat", "max_tokens": 8, "seed": 3, "logprobs": 0}
    every = ai.completions.create(**asked, n=6).choices
    ranked = sorted(every, key=lambda c: -np.mean(c.logprobs.token_logprobs) if c.logprobs.token_logprobs else 0.0)
    found = ai.completions.create(**asked, n=2, best_of=6).choices
    assert [item.text for item in found] == [item.text for item in ranked[:2]]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"suffix": "x"}, "suffix is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"logit_bias": {"3": 1}}, "logit_bias is not supported"),
        ({"n": 3, "best_of": 2}, "best_of=2 is less than n=3"),
        ({"best_of": 2, "stream": True}, "a stream cannot hold the best"),
        ({"max_tokens": 0}, "max_tokens=0 has a use with echo only"),
        ({"max_tokens": 47}, "has 4 tokens and asks for 47 more, but the model's context is 48"),
        ({"max_tokens": 40, "n": 6}, "6 outputs of 40 tokens are more than the 200 tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop must be"),
        ({"model": "t5", "echo": True}, "echo needs a decoder"),
        ({"model": "bert"}, "the model 'bert' cannot generate; it can: "),
        ({"model": "nobody"}, "there is no model 'nobody'; there are: bert, cross"),
        ({"prompt": ""}, "prompt 1 is empty"),
        ({"prompt": "", "echo": True, "max_tokens": 0, "logprobs": 1}, "prompt 1 has 0 tokens"),
        ({"prompt": [[3] * 49], "echo": True, "max_tokens": 0}, "prompt 1 has 49 tokens; it must have 1 to 48"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(ai: openai.OpenAI, asked: dict, message: str):
    with pytest.raises(openai.APIStatusError) as caught:
        ai.completions.create(**{"model": "gpt", "prompt": "the cat runs", **asked})
    assert 400 <= caught.value.status_code < 500 and message in caught.value.body["message"]


def test_a_chat_without_a_template_is_the_plain_one(ai: openai.OpenAI, served: dict[str, Served]):
    messages = [{"role": "system", "content": "a dog"}, {"role": "user", "content": [{"type": "text", "text": "cat"}]}]
    plain = [{"role": "system", "content": "a dog"}, {"role": "user", "content": "cat"}]
    assert plain_prompt(plain) == "a dog\n\nUser: cat\n\nAssistant:"
    prompt = prompt_ids(served["t5"].model, [plain_prompt(plain)])
    (want,) = next(continue_ids(served["t5"].model, prompt, Decoding(10), stop=[PLAIN_STOP]))
    asked = {"model": "t5", "messages": messages, "temperature": 0, "max_completion_tokens": 10}
    found = ai.chat.completions.create(**asked, logprobs=True, top_logprobs=2, n=2)
    assert [choice.message.content for choice in found.choices] == [want.text] * 2
    assert found.choices[0].message.role == "assistant" and found.usage.prompt_tokens == len(prompt[0])
    tokens = found.choices[0].logprobs.content
    assert "".join(item.token for item in tokens) == want.text
    assert sum(item.logprob for item in tokens) == pytest.approx(want.score, abs=1e-3) or want.ended
    assert all(item.top_logprobs[0].logprob == pytest.approx(item.logprob) for item in tokens)  # greedy
    chunks = list(ai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == want.text
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens
