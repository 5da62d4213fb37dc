"""The tokenizer of tasks without text: one token, the class token of a vision transformer."""

import dataclasses
from collections.abc import Callable, Iterator

import tokenizers
from tokenizers import models

from bertgpt.data.tokenizer_codec import Tokenizer

TOKEN = "[CLS]"


@dataclasses.dataclass(frozen=True)
class ClassToken:
    """Makes a tokenizer whose only token is [CLS], id 0: what a ViT reads beside the patches of an image.

    Every run has a tokenizer, which batches, checkpoints and exports refer to. Dosovitskiy et al. 2021 §3.1 prepend the
    class token to the patches as BERT does to words.
    """

    def make(self, texts: Callable[[], Iterator[str]]) -> Tokenizer:
        """The tokenizer; the texts are not read. Every word of a text would be [CLS]."""
        del texts
        backend = tokenizers.Tokenizer(models.WordLevel({TOKEN: 0}, unk_token=TOKEN))
        backend.add_special_tokens([TOKEN])
        return Tokenizer(backend, {"cls": TOKEN})
