"""What generation sends to a client: pieces of text with their tokens, as soon as nothing can change them any more."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.generate import cut, final_length
from bertgpt.serving.logprobs import Alternative

FinishReason = Literal["stop", "length"]
"""stop: a stop token or a stop string; length: max_new_tokens"""


class Piece(NamedTuple):
    """A part of one generated output."""

    prompt: int
    """index of the prompt"""
    output: int
    """index of the output of this prompt"""
    text: str
    """new text; may be empty"""
    ids: tuple[int, ...] = ()
    """new tokens, without the stop token"""
    logprobs: tuple[float, ...] | None = None
    """log probability of each of them, if asked for"""
    alternatives: tuple[tuple[Alternative, ...], ...] | None = None
    """the most probable tokens in place of each of them, most probable first, if asked for"""
    finish_reason: FinishReason | None = None
    """of the last piece of an output"""


@dataclasses.dataclass
class Progress:
    """One output while it is generated, and how much of it has been sent."""

    tokenizer: Tokenizer
    strings: Sequence[str]
    """strings that end the text, which ends before them"""
    prompt: int
    output: int
    wants: bool
    """whether log probabilities are sent"""
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[tuple[Alternative, ...]] = dataclasses.field(default_factory=list)
    sent_characters: int = 0
    sent_ids: int = 0

    def add(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        alternatives: Sequence[tuple[Alternative, ...]],
        reason: FinishReason | None,
    ) -> Piece | None:
        """Appends tokens.

        Args:
          ids: new tokens, without the stop token.
          logprobs: log probability of each; () if not wanted.
          alternatives: in place of each; () if not wanted.
          reason: if the output ends with them, why.

        Returns:
          What can be sent; None if it must wait for more tokens. With a finish reason, nothing follows: the output has
          ended with these tokens or, at a stop string, before the last of them.
        """
        before = len(self.ids)
        self.ids += ids
        self.logprobs += logprobs
        self.alternatives += alternatives
        text = self.tokenizer.decode(self.ids)
        kept = cut(text, self.strings)
        if kept != text:
            # Tokens after the one that completes the stop string depend on how many were generated at once.
            last = next((n for n in range(before + 1, len(self.ids)) if self._stops(n)), len(self.ids))
            reason, self.ids = "stop", self.ids[:last]
        end = len(kept) if reason else final_length(kept, self.strings)
        if end <= self.sent_characters and not reason:
            return None
        new, tokens = kept[self.sent_characters : end], slice(self.sent_ids, len(self.ids))
        self.sent_characters, self.sent_ids = end, len(self.ids)
        return Piece(
            self.prompt,
            self.output,
            new,
            tuple(self.ids[tokens]),
            tuple(self.logprobs[tokens]) if self.wants else None,
            tuple(self.alternatives[tokens]) if self.wants else None,
            reason,
        )

    def _stops(self, count: int) -> bool:
        text = self.tokenizer.decode(self.ids[:count])
        return cut(text, self.strings) != text
