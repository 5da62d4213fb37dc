"""Standard output that may go away during a run: `| head -1`, a closed terminal, a full disk behind `> log.txt`."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

FALLBACK = "bertgpt.ascii"
"""name of the handler of encoding errors that writes ASCII for other characters"""

_ASCII = str.maketrans(
    {"…": "...", "×": "x", "·": ".", "→": "->", "←": "<-", "−": "-", "–": "-", "—": "-", "•": "*", "≤": "<=", "≥": ">=",
     "±": "+-", "σ": "s", "Σ": "sum", "“": '"', "”": '"', "‘": "'", "’": "'"}
)  # fmt: skip


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Lines of boxes and bars become -, | and +, common signs what resembles them, all else its code: \\u4e2d."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = []
    for character in error.object[error.start : error.end]:
        if character in "─━═╌╍┄┅┈┉╸╺╴╶":
            found.append("-")
        elif character in "│┃║┆┇┊┋╎╏":
            found.append("|")
        elif "\u2500" <= character <= "\u257f":
            found.append("+")
        elif "\u2580" <= character <= "\u259f":
            found.append("#")
        else:
            plain = character.translate(_ASCII)
            found.append(plain if plain.isascii() else plain.encode("ascii", "backslashreplace").decode())
    return "".join(found), error.end


codecs.register_error(FALLBACK, _in_ascii)


class Output(io.TextIOBase):
    """Passes text on to a stream until that fails, and then discards it: a run does not end because nobody reads it."""

    def __init__(self, stream: io.TextIOBase):
        super().__init__()
        self.stream = stream
        self.lost: OSError | None = None
        """the error that the stream failed with"""
        self._on_loss: Callable[[OSError], None] | None = None

    def notify(self, on_loss: Callable[[OSError], None] | None) -> None:
        """Calls `on_loss` with the error when the stream fails, or now if it has failed before. None: no longer."""
        self._on_loss = on_loss
        if self.lost is not None and on_loss is not None:
            on_loss(self.lost)

    @property
    def encoding(self) -> str:
        """That of the stream."""
        return self.stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        """Passes text on, in ASCII where the stream's encoding has no such characters."""
        try:
            self._attempt(lambda: self.stream.write(text))
        except UnicodeEncodeError:
            self._attempt(lambda: self.stream.write(text.encode(self.encoding, FALLBACK).decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._attempt(self.stream.flush)

    def fileno(self) -> int:
        """That of the stream."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal that is still there."""
        return self.lost is None and self.stream.isatty()

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.lost is not None or self.stream.closed:
            return
        try:
            action()
        except OSError as error:
            self.lost = error
            discard(self.stream)
            if self._on_loss is not None:
                self._on_loss(error)


def discard(stream: io.TextIOBase) -> None:
    """Discards what a stream still holds and all that follows; the interpreter flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor, as in notebooks
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """`print` inside the block never fails because standard output went away."""
    with contextlib.redirect_stdout(Output(sys.stdout)):
        yield
