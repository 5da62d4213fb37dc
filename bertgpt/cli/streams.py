"""Standard streams that are closed, or whose encoding lacks characters that are printed."""

import io
import os
import sys

from bertgpt.training.terminal import FALLBACK


class Closed(io.TextIOWrapper):
    """In place of a standard stream that was closed (`>&-`): what is written to it is lost."""


def prepare_streams() -> None:
    """What is printed never fails for its characters: where the encoding lacks them, ASCII takes their place.

    Closed streams are opened on /dev/null, so that no file of ours gets their numbers.
    """
    for name, mode in (("stdin", "rb"), ("stdout", "wb"), ("stderr", "wb")):
        stream = vars(sys)[name]
        if stream is None:
            setattr(sys, name, Closed(open(os.devnull, mode), encoding="utf-8"))
        elif mode == "wb" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=FALLBACK)
