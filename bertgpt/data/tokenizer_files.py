"""Reads and writes tokenizers in the Hugging Face format, as a backend with the roles of its special tokens.

Four formats, in order of preference: tokenizer.json (any model); vocab.txt (WordPiece: BERT); vocab.json with
merges.txt (byte-level BPE: RoBERTa, GPT-2); spiece.model (SentencePiece, unigram or BPE: T5, ALBERT). Settings beside
them (tokenizer_config.json, special_tokens_map.json) take precedence.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
SETTINGS_FILES = ("special_tokens_map.json", "tokenizer_config.json")
FORMATS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
FILES = (*FORMATS, "merges.txt", *SETTINGS_FILES)
"""all files of a tokenizer"""
MARK, MARKED = "written_by", "bertgpt"  # in tokenizer_config.json: only such a tokenizer is replaced
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # types of SentencePiece pieces
EXTRA_IDS = 100  # sentinels that T5 adds unless its settings give another number
QUOTES = ("``", "''")  # which ALBERT reads as "


def read(path: Path) -> tuple[tokenizers.Tokenizer, Roles, bytes | None]:
    """(backend, roles, SentencePiece model or None) of a directory in one of the formats, or of one file.

    Raises:
      UserError: there is no tokenizer, it cannot be read, or it lacks a token that its settings name.
    """
    if path.is_dir():
        found = [name for name in FORMATS if (path / name).exists()]
        if not found:
            raise UserError(f"{path}: holds neither tokenizer.json nor vocab.txt, vocab.json or spiece.model")
        path = path / found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer")
    settings = read_settings(path.parent)
    readers = {".txt": read_wordpiece, ".model": read_sentencepiece}
    reader = read_byte_level if path.name == "vocab.json" else readers.get(path.suffix, read_backend)
    try:
        backend, known = reader(path, settings)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: cannot be read as a tokenizer: {' '.join(str(error).split())}") from None
    return backend, roles_of(backend, path, known, settings), sentencepiece_beside(path, backend)


def read_settings(directory: Path) -> Settings:
    """The merged content of the settings files."""
    settings: Settings = {}
    for file in (directory / name for name in SETTINGS_FILES):
        if file.exists():
            try:
                settings |= dict(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise UserError(f"{file}: not a JSON object: {error}") from None
    return settings


def made_here(directory: Path) -> bool:
    """Whether `write` made the files of a directory."""
    try:
        return read_settings(directory).get(MARK) == MARKED
    except UserError:
        return False


def name_of(entry: str | JsonObject | None) -> str | None:
    """A token is written as a string or as an object."""
    return entry["content"] if isinstance(entry, dict) else entry


def roles_of(backend: tokenizers.Tokenizer, path: Path, known: Roles, settings: Settings) -> Roles:
    """The token of each role: as in the settings, otherwise the usual one of the format if the tokenizer has it."""
    roles = {role: token for role, token in known.items() if backend.token_to_id(token) is not None}
    for role in ROLES:
        if f"{role}_token" in settings:
            roles.pop(role, None)
            token = name_of(settings[f"{role}_token"])
            if token is not None:
                if backend.token_to_id(token) is None:
                    raise UserError(f"{path}: has no {token} token, which its settings name as {role}_token")
                roles[role] = token
    return {role: roles[role] for role in ROLES if role in roles}


def special_tokens(roles: Roles, settings: Settings) -> list[AddedToken]:
    """The tokens of the roles, with the flags in the settings; the mask token includes the space before it."""
    tokens = {}
    for role, token in roles.items():
        entry = settings.get(f"{role}_token")
        flags = {flag: entry[flag] for flag in FLAGS if flag in entry} if isinstance(entry, dict) else {}
        tokens[token] = AddedToken(token, **{"lstrip": role == "mask", "normalized": False} | flags, special=True)
    return list(tokens.values())


def read_backend(path: Path, settings: Settings) -> tuple[tokenizers.Tokenizer, Roles]:
    backend = tokenizers.Tokenizer.from_file(str(path))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if "[CLS]" in vocabulary:
        return backend, BERT | ({} if "[PAD]" in vocabulary else {"pad": "<pad>", "unk": "<unk>"})
    if "<s>" in vocabulary:
        return backend, ROBERTA
    return backend, T5 if "</s>" in vocabulary else GPT2


def read_wordpiece(path: Path, settings: Settings) -> tuple[tokenizers.Tokenizer, Roles]:
    pieces = path.read_text(encoding="utf-8").splitlines()
    roles = {role: name_of(settings.get(f"{role}_token")) or token for role, token in BERT.items()}
    for token in roles.values():
        if token not in pieces:
            raise UserError(f"{path}: has no {token} token")
    guess = not any(piece[:1].isupper() for piece in pieces if not piece.startswith("["))
    backend = wordpiece(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=roles["unk"]),
        settings.get("do_lower_case", guess),
        settings.get("strip_accents"),
        settings.get("tokenize_chinese_chars", True),
    )
    return template_bert(backend, roles), roles


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


def read_byte_level(path: Path, settings: Settings) -> tuple[tokenizers.Tokenizer, Roles]:
    merges = path.with_name("merges.txt")
    if not merges.exists():
        raise UserError(f"{path}: needs merges.txt beside it")
    model = models.BPE.from_file(str(path), str(merges))
    roles = ROBERTA if model.token_to_id("<mask>") is not None else GPT2
    return byte_level(model, roles, settings), roles


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


def read_sentencepiece(path: Path, settings: Settings) -> tuple[tokenizers.Tokenizer, Roles]:
    try:
        return sentencepiece_backend(path.read_bytes(), settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def sentencepiece_backend(spiece: bytes, settings: Settings) -> tuple[tokenizers.Tokenizer, Roles]:
    """The rules of T5 or ALBERT around a SentencePiece model, for transformers and for everything except encoding.

    `Tokenizer.encode` uses the sentencepiece library. On plain text the backend gives the same ids; it differs where
    the text spells a special token, and in the normalisation of multiple accents.

    Raises:
      UserError: the model is neither unigram nor BPE, or a special token is missing.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(spiece)
    trainer = proto.trainer_spec
    if trainer.model_type not in (trainer.UNIGRAM, trainer.BPE):
        raise UserError("is neither a unigram nor a BPE model; only these are supported as .model files")
    # Scores are float32; their shortest decimals are written and read without loss.
    pieces = [(piece.piece, float(str(np.float32(piece.score)))) for piece in proto.pieces]
    names = {piece for piece, _ in pieces}
    is_albert = "[CLS]" in names
    rules = []
    if proto.normalizer_spec.precompiled_charsmap:
        rules = [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)]
        if "nfkc" in proto.normalizer_spec.name:
            # The library does not compose sequences longer than 5 bytes (Korean, voiced Japanese syllables).
            rules = [normalizers.NFC(), *rules, normalizers.NFC()]
    special = [piece.piece for piece in proto.pieces if piece.type == CONTROL]
    text = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    if is_albert:
        roles = ALBERT
        rules = albert_folding(settings.get("do_lower_case", True), settings.get("keep_accents", False)) + rules
    else:
        roles = T5
        extra = settings.get("extra_ids", EXTRA_IDS)
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra))]
        pieces += [(token, 0.0) for token in sentinels if token not in names]
        special += sentinels
    if trainer.model_type == trainer.UNIGRAM:
        model = models.Unigram(pieces, trainer.unk_id, byte_fallback=trainer.byte_fallback)
    else:
        model = models.BPE(
            {piece: i for i, (piece, _) in enumerate(pieces)},
            merges_of([(piece.piece, piece.score) for piece in proto.pieces if piece.type == NORMAL]),
            unk_token=pieces[trainer.unk_id][0],
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
    template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    if not is_albert:
        template = {"single": "$A </s>", "pair": "$A </s> $B </s>"}
    around = [(roles[role], backend.token_to_id(roles[role])) for role in ("cls", "sep", "eos") if role in roles]
    backend.post_processor = processors.TemplateProcessing(**template, special_tokens=around)
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


def sentencepiece_beside(path: Path, backend: tokenizers.Tokenizer) -> bytes | None:
    """The SentencePiece model at `path`, or beside a tokenizer.json made from it; None if there is none."""
    file = path if path.suffix == ".model" else path.with_name("spiece.model")
    if not file.exists() or path.suffix not in (".model", ".json"):
        return None
    from sentencepiece import SentencePieceProcessor

    spiece = file.read_bytes()
    try:
        processor = SentencePieceProcessor(model_proto=spiece)
    except RuntimeError:
        raise UserError(f"{file}: cannot be read as a SentencePiece model") from None
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    same = pieces == [backend.id_to_token(i) for i in range(len(pieces))]
    return spiece if same and folding(backend) is not None else None


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
    return rule["pattern"].get("String") if rule["type"] == "Replace" and rule["content"] == '"' else None


def is_squeeze(rule: JsonObject) -> bool:
    """Whether the rule collapses spaces, as sentencepiece itself does."""
    return rule["type"] == "Replace" and rule["pattern"].get("Regex") == " {2,}" and rule["content"] in (" ", "▁")


def write(backend: tokenizers.Tokenizer, roles: Roles, spiece: bytes | None, sentinels: int) -> dict[str, bytes]:
    """The files of the Hugging Face format, name → content: tokenizer.json, settings, and the files of the model."""
    text = backend.to_str(pretty=True)
    content = json.loads(text)
    names = {f"{role}_token": token for role, token in roles.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    files = {"tokenizer.json": text}
    normalizer = content["normalizer"] or {}
    ids = dict(sorted(backend.get_vocab().items(), key=lambda item: item[1]))
    if content["model"]["type"] == "WordPiece" and normalizer.get("type") == "BertNormalizer":
        files["vocab.txt"] = "".join(f"{piece}\n" for piece in ids)
        rules = {
            "do_lower_case": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
        }
        settings |= {"tokenizer_class": "BertTokenizer", **rules}
    elif content["model"]["type"] == "BPE" and (content["pre_tokenizer"] or {}).get("type") == "ByteLevel":
        files["vocab.json"] = json.dumps(ids, ensure_ascii=False) + "\n"
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in content["model"]["merges"]]
        files["merges.txt"] = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in pairs)
        settings["add_prefix_space"] = content["pre_tokenizer"]["add_prefix_space"]
    if spiece is not None:
        rules = json.dumps(content["normalizer"])
        settings["extra_ids"] = sentinels
        settings |= {"do_lower_case": "Lowercase" in rules, "keep_accents": "StripAccents" not in rules}
    settings[MARK] = MARKED
    files["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    files["special_tokens_map.json"] = json.dumps(names, indent=2, ensure_ascii=False) + "\n"
    encoded = {name: value.encode() for name, value in files.items()}
    return encoded if spiece is None else encoded | {"spiece.model": spiece}
