"""A JSON file read value by value, in memory that does not grow with the file."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

CHUNK = 1 << 20
LONGEST = 1 << 24  # bytes of one value; bounds memory, and what a broken file makes us read

_SOLID = re.compile(r"[^ \t\n\r]")
_END = re.compile(r"[ \t\n\r]*[,:\]}]")  # a value is whole where this follows: 1 may go on as 1.5
_decode = json.JSONDecoder().raw_decode


class Value(NamedTuple):
    """A JSON value and where it is.

    Attributes:
        parsed: as json.loads gives it.
        offset: bytes before it in the file.
        text: its bytes in the file.
    """

    parsed: Any
    offset: int
    text: bytes


class JsonStream:
    """Reads a UTF-8 file from its beginning; what has been passed is forgotten.

    Every method raises ValueError where the file is no JSON or a value is too long, and
    RecursionError where it is too deep.
    """

    def __init__(self, file: BinaryIO, chunk: int = CHUNK) -> None:
        head = file.read(4)
        encoding = json.detect_encoding(head)
        if not encoding.startswith("utf-8"):
            raise ValueError(f"expected UTF-8, found {encoding}")
        self._file = file
        self._chunk = chunk
        self._text = head.decode("latin-1")  # one character a byte: positions are offsets
        self._position = 3 if encoding == "utf-8-sig" else 0
        self._passed = 0  # bytes of the file before the text

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            found = _SOLID.search(self._text, self._position)
            self._position = found.start() if found else len(self._text)
            if found:
                return found[0]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Pass the next character that is no space, which is one of those wanted."""
        found = self.peek()
        if not found or found not in wanted:
            raise self._error(f"Expecting {' or '.join(wanted)}", self._position)
        self._position += 1
        return found

    def value(self) -> Value:
        """Pass a value, after which something has to follow."""
        self.peek()
        while True:
            start = self._position
            try:
                parsed, end = _decode(self._text, start)
                if _END.match(self._text, end):
                    break
                error = self._error("Expecting a delimiter", end)
            except json.JSONDecodeError as reason:
                error = self._error(reason.msg, reason.pos)
            if len(self._text) - start > LONGEST:
                raise ValueError(f"{error}, or a value of over {LONGEST} bytes")
            if not self._more():
                raise error
        text = self._text[start:end].encode("latin-1")
        if not text.isascii():
            parsed = json.loads(text)
        self._position = end
        return Value(parsed, self._passed + start, text)

    def elements(self) -> Iterator[Value]:
        """Pass an array and give its elements."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Pass an object and give its keys; the caller passes the value after each."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self._error("Expecting a key in double quotes", self._position)
            key: str = self.value().parsed
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def skip(self) -> None:
        """Pass a value of any length: its elements one by one."""
        kind = self.peek()
        if kind == "[":
            for _ in self.elements():
                pass
        elif kind == "{":
            for _ in self.members():
                self.value()
        else:
            self.value()

    def finish(self) -> None:
        """Make sure that nothing follows."""
        if self.peek():
            raise self._error("Extra data", self._position)

    def _more(self) -> bool:
        """Read on, at least as much as there is of the value at hand: so few attempts are made."""
        kept = self._text[self._position :]
        read = self._file.read(max(self._chunk, len(kept)))
        self._passed += self._position
        self._position = 0
        self._text = kept + read.decode("latin-1")
        return bool(read)

    def _error(self, what: str, position: int) -> ValueError:
        return ValueError(f"{what} (byte {self._passed + position})")
