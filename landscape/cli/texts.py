"""What commands print: names that come from files must not steer the terminal."""

import unicodedata
from typing import TextIO


def printable(text: str) -> str:
    """Return text with control characters, but for line feeds and tabs, written as escapes."""
    return "".join(
        ascii(c)[1:-1] if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in text
    )


class Printable:
    """A text stream that passes on what is written as `printable`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; what the encoding of the stream lacks is escaped, too."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()
