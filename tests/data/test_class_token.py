"""The tokenizer of tasks without text: one token, saved and loaded like any other."""

import dataclasses

from bertgpt.config import from_json, to_json
from bertgpt.data.class_token import ClassToken
from bertgpt.data.tokenizer import load_tokenizer


def test_the_only_token_is_the_class_token_with_id_0():
    tokenizer = ClassToken().make(lambda: iter(()))
    assert (tokenizer.vocab.size, tokenizer.vocab.cls, tokenizer.vocab.special) == (1, 0, (0,))
    assert tokenizer.encode(["", "two words"]) == [[], [0]]
    assert tokenizer.decode([0]) == ""


def test_a_class_token_tokenizer_is_the_same_after_saving_and_loading(tmp_path):
    tokenizer = ClassToken().make(lambda: iter(()))
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert (loaded.vocab, loaded.hash, loaded.files()) == (tokenizer.vocab, tokenizer.hash, tokenizer.files())
    loaded.save(tmp_path / "tokenizer")  # replaces what it wrote


def test_an_experiment_describes_the_class_token_in_its_json():
    assert from_json(to_json(ClassToken())) == ClassToken()
    assert dataclasses.fields(ClassToken) == ()
