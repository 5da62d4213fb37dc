"""SentencePiece models as backends of the tokenizers library: T5, mT5, ALBERT, XLM-RoBERTa, CamemBERT."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from bertgpt.data.tokenizer_added import Added, add_tokens
from bertgpt.data.tokenizer_rules import ALBERT, ROBERTA, T5, Roles, Settings, special_tokens
from bertgpt.io.files import one_line, read_bytes
from bertgpt.types import JsonObject, UserError

Layout = Literal["own", "xlm-roberta", "camembert"]
"""own: a token's id is its number in the model. The others shift ids as fairseq did, and add <mask> at the end"""
SPIECE_FILES = ("spiece.model", "sentencepiece.bpe.model")
SPIECE_BYTES = 1 << 28
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of SentencePiece pieces
EXTRA_IDS = 100  # sentinels that T5 adds unless its settings give another number
MOST_SENTINELS = 100_000
QUOTES = ("``", "''")  # which ALBERT reads as "
# What fairseq put in place of the first pieces of the model, and how many these are.
FAIRSEQ: dict[Layout, tuple[tuple[str, ...], int]] = {
    "xlm-roberta": (("<s>", "<pad>", "</s>", "<unk>"), 3),
    "camembert": (("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1),
}


def read_sentencepiece(path: Path, settings: Settings, added: list[Added]) -> tuple[tokenizers.Tokenizer, Roles]:
    """The backend of a SentencePiece model in the layout that its settings or its name tell.

    Raises:
      UserError: it is damaged, or lacks a special token.
    """
    try:
        spiece = renumbered(read_bytes(path, SPIECE_BYTES), layout_of(path, settings))
        backend, roles = sentencepiece_backend(spiece, settings)
        return add_tokens(backend, added), roles
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def layout_of(path: Path, settings: Settings) -> Layout:
    """The layout by the class of the tokenizer, the type of the model beside it, or else the name of the file."""
    named = f"{settings.get('tokenizer_class')} {settings.get('model_type')}".lower()
    if "camembert" in named:
        return "camembert"
    if "xlmroberta" in named or "xlm-roberta" in named or path.name == "sentencepiece.bpe.model":
        return "xlm-roberta"
    return "own"


def parse(spiece: bytes) -> Any:
    """A serialized SentencePiece model as a message.

    Raises:
      UserError: it is none.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(spiece)
        SentencePieceProcessor(model_proto=spiece)
    except Exception as error:  # protobuf and sentencepiece have types of their own
        raise UserError(f"cannot be read as a SentencePiece model: {one_line(error)}") from None
    return proto


def renumbered(spiece: bytes, layout: Layout) -> bytes:
    """The model with its pieces at the ids of the layout, so that the library encodes to these ids.

    Raises:
      UserError: it is not a SentencePiece model, or not one of fairseq.
    """
    proto = parse(spiece)
    if layout == "own":
        return spiece
    start = [piece.piece for piece in proto.pieces[:3]]
    if start != ["<unk>", "<s>", "</s>"]:
        raise UserError(f"begins with the pieces {', '.join(start)}, but a model of {layout} with <unk>, <s>, </s>")
    first, dropped = FAIRSEQ[layout]
    kept = [(piece.piece, piece.score, piece.type) for piece in proto.pieces[dropped:]]
    del proto.pieces[:]
    special = [(token, 0.0, UNKNOWN if token == "<unk>" else CONTROL) for token in first]
    for piece, score, kind in (*special, *kept, ("<mask>", 0.0, CONTROL)):
        proto.pieces.add(piece=piece, score=score, type=kind)
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    trainer = proto.trainer_spec
    trainer.unk_id, trainer.pad_id = ids["<unk>"], ids["<pad>"]
    trainer.bos_id, trainer.eos_id = ids.get("<s>", -1), ids.get("</s>", -1)
    return proto.SerializeToString()


def numbered_like(spiece: bytes, backend: tokenizers.Tokenizer) -> tuple[Layout, bytes] | None:
    """The layout in which the model has the ids of the backend, and the model in it; None if there is none."""
    own = [piece.piece for piece in parse(spiece).pieces]
    for layout in ("own", *FAIRSEQ):
        first, dropped = FAIRSEQ.get(layout, ((), 0))
        pieces = own if layout == "own" else [*first, *own[dropped:], "<mask>"]
        if pieces == [backend.id_to_token(i) for i in range(len(pieces))]:
            return layout, renumbered(spiece, layout)
    return None


def pieces_of_type(spiece: bytes, kind: int) -> frozenset[str]:
    """The pieces of one type, such as CONTROL, which no text contains, or USER_DEFINED, which are found in any text."""
    return frozenset(piece.piece for piece in parse(spiece).pieces if piece.type == kind)


def sentencepiece_beside(path: Path, backend: tokenizers.Tokenizer) -> bytes | None:
    """The SentencePiece model at `path`, or beside a tokenizer.json made from it; None if there is none."""
    files = [path] if path.suffix == ".model" else [path.with_name(name) for name in SPIECE_FILES]
    found = [file for file in files if file.exists()]
    if not found or path.suffix not in (".model", ".json"):
        return None
    spiece = read_bytes(found[0], SPIECE_BYTES)
    try:
        return spiece if numbered_like(spiece, backend) is not None and folding(backend) is not None else None
    except UserError as error:
        raise UserError(f"{found[0]}: {error}") from None


def sentencepiece_backend(spiece: bytes, settings: Settings) -> tuple[tokenizers.Tokenizer, Roles]:
    """The rules of T5, ALBERT or XLM-RoBERTa around a SentencePiece model, for everything except encoding.

    `Tokenizer.encode` uses the sentencepiece library. On plain text the backend gives the same ids; it differs where
    the text spells a special token, and in the normalisation of multiple accents.

    Raises:
      UserError: the model is neither unigram nor BPE, or a special token is missing.
    """
    proto = parse(spiece)
    trainer = proto.trainer_spec
    if trainer.model_type not in (trainer.UNIGRAM, trainer.BPE):
        raise UserError("is neither a unigram nor a BPE model; only these are supported as .model files")
    # Scores are float32; their shortest decimals are written and read without loss.
    pieces = [(piece.piece, float(str(np.float32(piece.score)))) for piece in proto.pieces]
    names = {piece for piece, _ in pieces}
    unknown = next(i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN)
    rules = []
    if proto.normalizer_spec.precompiled_charsmap:
        rules = [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)]
        if "nfkc" in proto.normalizer_spec.name:
            # The library does not compose sequences longer than 5 bytes (Korean, voiced Japanese syllables).
            rules = [normalizers.NFC(), *rules, normalizers.NFC()]
    special = [piece.piece for piece in proto.pieces if piece.type == CONTROL]
    text = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    if "[CLS]" in names:
        roles, template = ALBERT, {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
        rules = albert_folding(settings.get("do_lower_case", True), settings.get("keep_accents", False)) + rules
    elif {"<s>", "<mask>"} <= names:
        roles, template = ROBERTA, {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"}
    else:
        roles, template = T5, {"single": "$A </s>", "pair": "$A </s> $B </s>"}
        # The models of mT5 hold the sentinels, as ▁<extra_id_0>.
        extra = settings.get("extra_ids", 0 if "▁<extra_id_0>" in names else EXTRA_IDS)
        if type(extra) is not int or not 0 <= extra <= MOST_SENTINELS:
            raise UserError(f"its settings name extra_ids={extra!r}, which must be a number up to {MOST_SENTINELS:,}")
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra))]
        pieces += [(token, 0.0) for token in sentinels if token not in names]
        special += sentinels
    if trainer.model_type == trainer.UNIGRAM:
        model = models.Unigram(pieces, unknown, byte_fallback=trainer.byte_fallback)
    else:
        model = models.BPE(
            {piece: i for i, (piece, _) in enumerate(pieces)},
            merges_of([(piece.piece, piece.score) for piece in proto.pieces if piece.type == NORMAL]),
            unk_token=pieces[unknown][0],
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    backend = tokenizers.Tokenizer(model)
    if rules:
        backend.normalizer = normalizers.Sequence(rules)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    if trainer.byte_fallback:
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), backend.decoder])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in text])
    missing = [token for token in roles.values() if backend.token_to_id(token) is None]
    if missing:
        raise UserError(f"has no {missing[0]} piece")
    backend.add_special_tokens([*special_tokens(roles, settings), *(t for t in special if t not in roles.values())])
    around = [(roles[role], backend.token_to_id(roles[role])) for role in ("cls", "sep", "eos") if role in roles]
    backend.post_processor = processors.TemplateProcessing(**template, special_tokens=list(dict(around).items()))
    return backend, roles


def albert_folding(lowercase: bool = True, keep_accents: bool = False) -> list[normalizers.Normalizer]:
    """ALBERT's normalisation of a text before its SentencePiece model."""
    rules = [normalizers.Replace(quotes, '"') for quotes in QUOTES]
    if not keep_accents:
        rules += [normalizers.NFKD(), normalizers.StripAccents()]
    return [*rules, normalizers.Lowercase()] if lowercase else rules


def merges_of(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """The merges implied by a SentencePiece BPE model: best score first, every split of a piece into two others."""
    scores = dict(pieces)
    splits = [
        (piece, i) for piece in scores for i in range(1, len(piece)) if piece[:i] in scores and piece[i:] in scores
    ]
    return [(piece[:i], piece[i:]) for piece, i in sorted(splits, key=lambda split: -scores[split[0]])]


def folding(backend: tokenizers.Tokenizer) -> normalizers.Normalizer | None:
    """The normalisation before SentencePiece's own rules: ALBERT removes case and accents, T5 does nothing.

    None if the backend has rules that sentencepiece cannot reproduce.
    """
    content = json.loads(backend.to_str())
    rules = content["normalizer"] or {"type": "Sequence", "normalizers": []}
    rules = rules["normalizers"] if rules["type"] == "Sequence" else [rules]
    own = [rule for rule in rules if rule["type"] not in ("Precompiled", "NFC") and not is_squeeze(rule)]
    for rule in own:
        if rule["type"] not in ("NFKD", "StripAccents", "Lowercase") and quotes_of(rule) not in QUOTES:
            return None
    content["normalizer"] = {"type": "Sequence", "normalizers": own}
    return tokenizers.Tokenizer.from_str(json.dumps(content)).normalizer


def quotes_of(rule: JsonObject) -> str | None:
    """The quotes that a rule replaces by ", if it does."""
    return rule["pattern"].get("String") if rule["type"] == "Replace" and rule["content"] == '"' else None


def is_squeeze(rule: JsonObject) -> bool:
    """Whether the rule collapses spaces, as sentencepiece itself does."""
    return rule["type"] == "Replace" and rule["pattern"].get("Regex") == " {2,}" and rule["content"] in (" ", "▁")
