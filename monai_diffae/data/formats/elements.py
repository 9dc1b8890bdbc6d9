"""Check that all elements of a DICOM file lie within it.

GDCM trusts the length that an element declares: one flipped bit made it allocate 23 GB of memory. All lengths are
therefore checked first (DICOM PS3.5, chapter 7).
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.data.formats.scan import problem

_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_UNDEFINED = 0xFFFFFFFF
_PIXELS, _SYNTAX, _VALUE_TABLE = (0x7FE0, 0x0010), (0x0002, 0x0010), (0x0028, 0x3000)
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DEEPEST = 32


@dataclass(frozen=True)
class Elements:
    """What is special about the elements of a DICOM file.

    Attributes:
        has_value_table: there is a table that converts stored values (ModalityLUTSequence), which GDCM ignores.
        wrong_syntax: where the file says that its elements are explicit, although they are implicit; None: it is right.
    """

    has_value_table: bool = False
    wrong_syntax: slice | None = None


def check_elements(path: Path) -> Elements:
    """Check the elements of a DICOM file, up to the pixels.

    Raises:
        ScanError: an element is longer than the file, the beginning of the file is not DICOM, or the elements are not
            encoded as the file says.
    """
    with open(path, "rb") as stream:
        if not stream.seek(0, 2):
            raise problem(path, "the file is empty", "copy it again")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _check(data)
            except _BrokenError as error:
                raise problem(path, f"its DICOM structure is damaged ({error})", "copy it again") from error


def with_right_syntax(content: bytes, wrong_syntax: slice) -> bytes:
    """The content of a file whose elements are implicit, with the transfer syntax that says so."""
    length = wrong_syntax.stop - wrong_syntax.start
    return content[: wrong_syntax.start] + _IMPLICIT.ljust(length, b"\0") + content[wrong_syntax.stop :]


class _BrokenError(Exception):
    """The message says what is wrong with the structure."""


def _check(data: mmap.mmap) -> Elements:
    has_preamble = data[128:132] == b"DICM"
    reader = _Reader(data)
    at = 132 if has_preamble else 0
    if has_preamble and reader.tag(at)[0] != 0x0002:
        raise _BrokenError("it does not begin with group 2")
    syntax, syntax_at, wrong_syntax = _IMPLICIT, slice(0), None
    while reader.tag(at)[0] == 0x0002:
        tag, _, start, length = reader.element(at)
        reader.require(start, length, len(data))
        if tag == _SYNTAX:
            syntax_at = slice(start, start + length)
            syntax = data[syntax_at].strip(b" \0")
        at = start + length
    if syntax == _DEFLATED:
        return Elements()  # the rest is one zlib stream
    reader.order = "big" if syntax == _BIG_ENDIAN else "little"
    # without a preamble, the encoding is guessed for each element
    reader.explicit = syntax != _IMPLICIT or not has_preamble
    if has_preamble and reader.explicit and at + 8 <= len(data) and not reader.has_kind(at):
        if syntax != _EXPLICIT:
            raise _BrokenError("its elements are implicit, but its transfer syntax says explicit")
        reader.explicit, wrong_syntax = False, syntax_at
    reader.walk(at, len(data), 0)
    return Elements(reader.has_value_table, wrong_syntax)


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.order, self.explicit = data, "little", True
        self.has_value_table = False

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self.data[at : at + size], self.order)  # type: ignore[arg-type]

    def tag(self, at: int) -> tuple[int, int]:
        return self.number(at, 2), self.number(at + 2, 2)

    def element(self, at: int) -> tuple[tuple[int, int], bytes, int, int]:
        """Tag, value representation (empty if implicit), position of the value, and its length."""
        tag, kind = self.tag(at), self.data[at + 4 : at + 6]
        if not self.explicit or tag[0] == 0xFFFE or not self.has_kind(at):
            return tag, b"", at + 8, self.number(at + 4, 4)
        if kind in _LONG:
            return tag, kind, at + 12, self.number(at + 8, 4)
        if kind not in _SHORT:  # GDCM guesses the length of unknown kinds
            raise _BrokenError("an element is of an unknown kind")
        return tag, kind, at + 8, self.number(at + 6, 2)

    def has_kind(self, at: int) -> bool:
        """Whether the element has two letters where an explicit one has its value representation."""
        return re.fullmatch(rb"[A-Z]{2}", self.data[at + 4 : at + 6]) is not None

    def require(self, start: int, length: int, end: int) -> None:
        if start + length > end:
            raise _BrokenError("an element is longer than the file")

    def walk(self, at: int, end: int, depth: int) -> int:
        """Check elements up to the end of their item or to the file's pixels, and return that position."""
        if depth > _DEEPEST:
            raise _BrokenError("its sequences are nested too deep")
        while at + 8 <= end:
            tag, kind, start, length = self.element(at)
            if tag in (_ITEM_END, _SEQUENCE_END):
                return start
            if tag == _PIXELS and depth == 0:
                if length != _UNDEFINED:
                    self.require(start, length, end)
                return end
            if tag == _VALUE_TABLE and depth == 0 and length:
                self.has_value_table = True
            if length == _UNDEFINED:
                at = self.items(start, end, depth)
                continue
            self.require(start, length, end)
            if kind == b"SQ" or (not kind and length >= 8 and self.tag(start) == _ITEM):
                self.items(start, start + length, depth)
            at = start + length
        return end

    def items(self, at: int, end: int, depth: int) -> int:
        """Check the items of a sequence, and return the position of its end."""
        while at + 8 <= end:
            tag, _, start, length = self.element(at)
            if tag == _SEQUENCE_END:
                return start
            if tag != _ITEM:
                raise _BrokenError("a sequence holds something other than items")
            if length == _UNDEFINED:
                at = self.walk(start, end, depth + 1)
                continue
            self.require(start, length, end)
            self.walk(start, start + length, depth + 1)
            at = start + length
        return end
