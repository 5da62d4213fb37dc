"""The rules of BERT, RoBERTa and GPT-2 around a vocabulary, and what settings change in a tokenizer.json."""

from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from bertgpt.types import JsonObject, UserError

Roles = dict[str, str]  # role → token, for the roles that the tokenizer has
Settings = JsonObject
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "bos": "<s>", "eos": "</s>"}
GPT2 = {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}
T5 = {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"}
ALBERT = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def name_of(entry: Any) -> str | None:
    """The token of an entry of the settings: a string, an object, or null.

    Raises:
      UserError: it is something else.
    """
    content = entry.get("content") if isinstance(entry, dict) else entry
    if not (content is None and entry is None) and not isinstance(content, str):
        raise UserError(f"{entry!r} is neither a token nor an object with its content")
    return content


def flags_of(entry: Any) -> dict[str, bool]:
    """The flags that an entry states."""
    return {flag: bool(entry[flag]) for flag in FLAGS if flag in entry} if isinstance(entry, dict) else {}


def special_tokens(roles: Roles, settings: Settings) -> list[AddedToken]:
    """The tokens of the roles, with the flags in the settings; the mask token includes the space before it."""
    tokens = {}
    for role, token in roles.items():
        flags = {"lstrip": role == "mask", "normalized": False} | flags_of(settings.get(f"{role}_token"))
        tokens[token] = AddedToken(token, **flags, special=True)
    return list(tokens.values())


# -- BERT -------------------------------------------------------------------------------------------------------------


def wordpiece(
    model: models.WordPiece, lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> tokenizers.Tokenizer:
    """BERT's rules around a WordPiece model."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=split_chinese
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def template_bert(backend: tokenizers.Tokenizer, roles: Roles) -> tokenizers.Tokenizer:
    """Adds what other programs read from the file: special tokens, and the template [CLS] A [SEP] B [SEP]."""
    backend.add_special_tokens(list(roles.values()))
    cls, sep = ((roles[role], backend.token_to_id(roles[role])) for role in ("cls", "sep"))
    backend.post_processor = processors.BertProcessing(sep, cls)
    return backend


# -- RoBERTa and GPT-2 ------------------------------------------------------------------------------------------------


def byte_level(model: models.BPE, roles: Roles, settings: Settings) -> tokenizers.Tokenizer:
    """The rules of RoBERTa or GPT-2 around a byte-level BPE model."""
    backend = tokenizers.Tokenizer(model)
    space = settings.get("add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special_tokens(roles, settings))
    if "cls" in roles:
        sep, cls = ((roles[role], backend.token_to_id(roles[role])) for role in ("sep", "cls"))
        backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=space)
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


# -- settings beside a tokenizer.json ---------------------------------------------------------------------------------

# What a class of transformers assumes where tokenizer_config.json names the class but not the rule.
ASSUMED = {
    "Bert": {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
    "Albert": {"do_lower_case": True, "keep_accents": False},
    "Roberta": {"add_prefix_space": False},
    "GPT2": {"add_prefix_space": False},
}
ASSUMED |= {"DistilBert": ASSUMED["Bert"], "Electra": ASSUMED["Bert"]}
BARE = ("PreTrainedTokenizer", "TokenizersBackend")
"""classes of transformers, without the ending Fast, that follow tokenizer.json whatever the settings say"""
BERT_RULES = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def stated_rules(settings: Settings) -> JsonObject:
    """The rules that tokenizer_config.json states, or that the class of the tokenizer named there implies."""
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    if name in BARE:
        return {}
    assumed = ASSUMED.get(name.removesuffix("Tokenizer"), {})
    rules = (*BERT_RULES, "keep_accents", "add_prefix_space")
    return assumed | {rule: settings[rule] for rule in rules if rule in settings}


def apply_settings(content: JsonObject, settings: Settings) -> None:
    """Changes the content of a tokenizer.json as its settings say, which take precedence, as they do in transformers.

    transformers (5.24) builds the tokenizer of a known class anew from the settings, and takes no more than the
    vocabulary, the added tokens and the template from tokenizer.json.
    """
    stated = stated_rules(settings)
    for node in (*nodes(content.get("normalizer")), *nodes(content.get("pre_tokenizer"))):
        if node.get("type") == "BertNormalizer":
            node |= {name: stated[rule] for rule, name in BERT_RULES.items() if rule in stated}
    normalizer = content.get("normalizer") or {}
    if any(node.get("content") == '"' for node in nodes(normalizer)):  # as in ALBERT, before SentencePiece
        content["normalizer"] = _fold_as_stated(normalizer, stated)
    if isinstance(space := stated.get("add_prefix_space"), bool):
        for part in ("pre_tokenizer", "post_processor", "decoder"):
            for node in nodes(content.get(part)):
                if node.get("type") in ("ByteLevel", "RobertaProcessing") and part != "decoder":
                    node["add_prefix_space"] = space
                if node.get("type") == "Metaspace" and part != "post_processor":
                    node["prepend_scheme"] = "always" if space else "never"


def _fold_as_stated(normalizer: JsonObject, stated: JsonObject) -> JsonObject:
    """ALBERT's normalizer with or without the removal of case and accents, which follow the replacement of quotes."""
    rules = [node for node in nodes(normalizer) if node.get("type") != "Sequence"]
    types = [node.get("type") for node in rules]
    lowercase = stated.get("do_lower_case", "Lowercase" in types)
    accents = stated.get("keep_accents", "StripAccents" not in types)
    kept = [node for node in rules if node.get("type") not in ("NFKD", "StripAccents", "Lowercase")]
    last = max(i for i, node in enumerate(kept) if node.get("content") == '"') + 1
    folds = ([] if accents else ["NFKD", "StripAccents"]) + (["Lowercase"] if lowercase else [])
    return {"type": "Sequence", "normalizers": [*kept[:last], *({"type": fold} for fold in folds), *kept[last:]]}


def nodes(part: Any) -> Iterator[JsonObject]:
    """A part of a tokenizer.json and the parts in its sequences."""
    if isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "processors", "decoders"):
            for inner in part.get(name) or ():
                yield from nodes(inner)
