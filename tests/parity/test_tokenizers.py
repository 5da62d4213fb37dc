"""Ids equal transformers' own, from the same directory and from the one that we save."""

import json
from pathlib import Path

import pytest
from data.test_tokenizer_files import ALBERT, LINES, ROBERTA, T5, byte_level, sentence_piece

from bertgpt.data.tokenizer import WordPiece, load_tokenizer
from parity.families import transformers

CLASSES = {
    "wordpiece": "BertTokenizer", "roberta": "RobertaTokenizer", "gpt2": "GPT2Tokenizer", "t5": "T5Tokenizer",
    "albert": "AlbertTokenizer",
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_ids_are_those_of_transformers(kind, tmp_path: Path):
    if kind == "wordpiece":
        WordPiece(1200, limit_alphabet=600).make(lambda: iter(LINES)).save(tmp_path / "a")
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (tmp_path / "a" / name).unlink()
    elif kind in ("roberta", "gpt2"):
        byte_level(tmp_path / "a", ROBERTA if kind == "roberta" else ["<|endoftext|>"])
    else:
        sentence_piece(tmp_path / "a", **(T5 if kind == "t5" else ALBERT))
    if kind in ("roberta", "albert"):  # as released ones say; transformers 5 has forgotten it as the default
        mask = {"content": "<mask>" if kind == "roberta" else "[MASK]", "lstrip": True, "__type": "AddedToken"}
        flags = {"rstrip": False, "single_word": False, "normalized": False}
        (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps({"mask_token": mask | flags}))
    reference = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "a")
    ours = load_tokenizer(tmp_path / "a")
    before, after = ours.frame
    ids = [before + row + after for row in ours.encode(LINES, parse_special=True)]
    assert ids == reference(LINES).input_ids
    assert [ours.decode(row) for row in ids] == reference.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    ours.save(tmp_path / "b")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert again(LINES).input_ids == ids
    for role, token in ours.roles.items():
        assert getattr(again, f"{role}_token") == token
