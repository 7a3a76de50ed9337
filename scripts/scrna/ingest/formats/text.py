"""Text files that somebody else made, read without holding more of them than their kind needs."""

import gzip
import io
from pathlib import Path
from typing import IO

from scrna.errors import UserError

#: Bytes of a line: a gene's has four names at most.
MAX_LINE = 2**16


class BoundedText(io.BufferedIOBase):
    """A file of lines, gzipped or not, that refuses lines without an end and text without an end.

    Parameters
    ----------
    path
        The file; one that ends in ``.gz`` is unpacked.
    max_bytes, max_lines
        What it may hold, unpacked.
    """

    def __init__(self, path: Path, *, max_bytes: float, max_lines: float):
        super().__init__()
        self.max_bytes, self.max_lines = max_bytes, max_lines
        self._path = path
        opened = gzip.open if path.suffix == ".gz" else open
        self._stream: IO[bytes] = opened(path, "rb")
        self._n_bytes = self._n_lines = self._since_line = 0

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes; all if there is no size."""
        size = int(self.max_bytes) + 1 if size is None or size < 0 else size
        return self._checked(self._stream.read(size))

    def read1(self, size: int = -1) -> bytes:
        """Read so many bytes at most, at once."""
        return self._checked(self._stream.read1(size if size >= 0 else io.DEFAULT_BUFFER_SIZE))

    def readline(self, size: int | None = -1) -> bytes:
        """Read a line."""
        return self._checked(self._stream.readline(MAX_LINE + 1))

    def _checked(self, data: bytes) -> bytes:
        self._n_bytes += len(data)
        self._n_lines += data.count(b"\n")
        end = data.rfind(b"\n")
        self._since_line = len(data) - end - 1 if end >= 0 else self._since_line + len(data)
        if self._since_line > MAX_LINE:
            msg = (
                f"{self._path} has a line of more than {MAX_LINE:,} bytes after {self._n_lines:,} "
                "lines: it is damaged, or another kind of file"
            )
            raise UserError(msg)
        if self._n_bytes > self.max_bytes or self._n_lines > self.max_lines:
            msg = (
                f"{self._path} has more than {self._n_lines:,} lines, {self._n_bytes / 1e6:,.0f} "
                "MB as text, which is more than such a file holds: it is damaged, or another kind "
                "of file"
            )
            raise UserError(msg)
        return data
