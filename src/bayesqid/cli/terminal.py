"""What a terminal gets: no control characters out of files, and no crash over letters its encoding lacks."""

import re
import sys
from typing import Any

from bayesqid.files import printable

# how progress bars go back to the start of a line and a line up
_MOVES = re.compile(r"(\r|\x1b\[A)")


class Plain:
    """A text stream that shows control characters, which names in files may hold to fool a terminal, as �.

    `moves`: carriage returns and steps up, which progress bars need, pass.
    """

    def __init__(self, stream: Any, moves: bool = False) -> None:
        self._stream, self._moves = stream, moves

    def write(self, text: str) -> int:
        """Write the text; as many characters as it has count as written."""
        parts = _MOVES.split(text) if self._moves else [text]
        self._stream.write("".join(part if at % 2 else printable(part) for at, part in enumerate(parts)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts one after another."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Put `Plain` before stdout and stderr, and have letters that their encodings lack written as escapes."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = Plain(sys.stdout), Plain(sys.stderr, moves=True)
