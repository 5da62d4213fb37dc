"""Greedy and beam search give the very tokens of transformers.generate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.convert.hub import import_model
from bertgpt.inference.decoding import Decoding, Stops
from bertgpt.inference.generate import generate_ids
from bertgpt.models.apply import make_apply
from parity.families import make, save, torch

NAMES = ("gpt2", "t5", "t5-v1.1", "switch")
CAPTIONERS = ("captioner-gpt2", "captioner-bert-wide")
NEW = 64
SETTINGS = {
    "greedy": {},
    "greedy-rules": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 12},
    "beams": {"num_beams": 4},
    "beams-early": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.6, "num_return_sequences": 3},
    "beams-never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "no_repeat_ngram_size": 2},
}
THEIR_NAMES = {"no_repeat_ngram_size": "no_repeat_ngram_size", "num_return_sequences": "num_return_sequences"}


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """Their model and ours, and 20 prompts of 1 … 20 tokens."""
    name = request.param
    model = make(name)
    path = tmp_path_factory.mktemp("model") / name
    save(model, path, name)
    ours = import_model(path)
    rng = np.random.default_rng(0)
    return model, ours, [rng.integers(3, 61, n).tolist() for n in range(1, 21)]


@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_are_those_of_transformers(pair, setting):
    model, ours, prompts = pair
    settings = SETTINGS[setting]
    returns = settings.get("num_return_sequences", 1)
    # Random models rarely hit one token: several stop tokens make rows end at all lengths.
    stop = (1, 7, 23)
    wanted = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=NEW,
            do_sample=False, eos_token_id=list(stop), pad_token_id=0,
            decoder_start_token_id=ours.config.start_id,
            **{THEIR_NAMES.get(k, k): v for k, v in settings.items()},
        ).numpy()  # fmt: skip
        skip = 1 if ours.config.start_id is not None else len(prompt)
        wanted.append([cut(row[skip:].tolist(), stop) for row in output])
    decoding = Decoding(max_new_tokens=NEW, **settings)
    params = jax.tree.map(jnp.asarray, ours.params)
    outputs = generate_ids(
        make_apply(ours.config.make()), params, ours.config, prompts, decoding, Stops(stop, 0, ours.config.vocab_size)
    )
    assert [[o.ids for o in row] for row in outputs] == wanted
    lengths = [len(ids) for row in wanted for ids in row]
    assert max(lengths) > 20 and len(lengths) == returns * len(prompts)


def cut(ids: list[int], stop: tuple[int, ...]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in stop), len(ids))]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_are_those_of_transformers(name, setting, tmp_path):
    model, settings, stop, new = make(name), SETTINGS[setting], (2, 7, 23), 19
    save(model, tmp_path, name)
    ours, returns = import_model(tmp_path), SETTINGS[setting].get("num_return_sequences", 1)
    images = np.random.default_rng(0).normal(size=(12, 3, 12, 12)).astype(np.float32)
    output = model.generate(
        torch.tensor(images), max_new_tokens=new, do_sample=False, eos_token_id=list(stop), pad_token_id=0,
        decoder_start_token_id=ours.config.start_id, **settings,
    ).numpy()  # fmt: skip
    wanted = [cut(row[1:].tolist(), stop) for row in output]
    found = generate_ids(
        make_apply(ours.config.make()), jax.tree.map(jnp.asarray, ours.params), ours.config, [[0]] * len(images),
        Decoding(max_new_tokens=new, **settings), Stops(stop, 0, ours.config.vocab_size),
        images=images.transpose(0, 2, 3, 1)[:, None],
    )  # fmt: skip
    assert [o.ids for row in found for o in row] == wanted and len({tuple(ids) for ids in wanted}) > returns
