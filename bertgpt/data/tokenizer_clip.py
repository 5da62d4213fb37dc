"""CLIP's tokenizer: byte-level BPE of lower-cased words, whose last subword ends with </w> (Radford et al. 2021 §2.4).

The rules are those of transformers' CLIPTokenizer. The released code also repairs damaged Unicode (ftfy) and unescapes
HTML before; transformers does not.
"""

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from bertgpt.data.tokenizer_rules import Roles, Settings, special_tokens
from bertgpt.types import JsonObject

END = "<|endoftext|>"
CLIP = {"pad": END, "unk": END, "bos": "<|startoftext|>", "eos": END}
WORD_END = "</w>"
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def clip(vocabulary: dict[str, int], merges: list[tuple[str, str]], settings: Settings) -> tokenizers.Tokenizer:
    """The rules of CLIP around a vocabulary with its merges."""
    model = models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END, unk_token=END)
    backend = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = word_decoder()
    backend.add_special_tokens(special_tokens(CLIP, settings))
    end, start = ((CLIP[role], backend.token_to_id(CLIP[role])) for role in ("eos", "bos"))
    backend.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return backend


def word_decoder() -> decoders.Decoder:
    """Bytes to text, with a space after each word but the last."""
    # Not `Strip`, which fails on an empty text.
    last = decoders.Replace(Regex(f"{WORD_END}$"), "")
    return decoders.Sequence([decoders.ByteLevel(), last, decoders.Replace(WORD_END, " ")])


def is_clip(content: JsonObject) -> bool:
    """Whether a tokenizer.json is of this kind."""
    model = content.get("model")
    return isinstance(model, dict) and model.get("end_of_word_suffix") == WORD_END


def roles_of_clip(vocabulary: dict[str, int]) -> Roles | None:
    """The roles of a vocabulary with CLIP's start token; None of others."""
    return CLIP if CLIP["bos"] in vocabulary else None
