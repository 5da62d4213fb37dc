"""Decompression of .zst files while they are read."""

import io
from typing import Any

from bertgpt.types import UserError

CHUNK = 1 << 16
"""compressed bytes decompressed at once; the result is held in memory"""


class ZstdReader(io.RawIOBase):
    """The content of all frames of a .zst file.

    fsspec decompresses .zst with zstandard's stream reader, which takes a truncated frame for the end of the file; here
    that is an error. (The standard library's reader, from Python 3.14 on, reports it too and can replace this class.)
    """

    def __init__(self, path: str, file: io.BufferedReader):
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: zstandard is not installed; pip install 'bertgpt[text]'") from None
        self._path, self._file, self._error = path, file, zstandard.ZstdError
        # The library's default limit refuses what `zstd --long=31` writes.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame: Any = None
        self._input, self._output, self._taken = b"", b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._taken == len(self._output):
            self._input = self._input or self._file.read(CHUNK)
            if not self._input:
                if self._frame is not None:
                    raise UserError(f"{self._path}: is corrupt or cut short: the file ends inside a zstd frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._output, self._taken = self._frame.decompress(self._input), 0
            except self._error as error:
                raise UserError(f"{self._path}: is corrupt or cut short: {' '.join(str(error).split())}") from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output) - self._taken)
        buffer[:count] = memoryview(self._output)[self._taken : self._taken + count]
        self._taken += count
        return count
