"""gzip (RFC 1952) with any number of members; whatever follows the last one must be another one."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Final, cast

from isal import igzip_lib

from moored.kernel.errors import Unknown

# the stub takes the class for an instance
_ISAL_ERROR: Final = cast(type[Exception], igzip_lib.IsalError)
_NUMBERED: Final = re.compile("Error -?[0-9]+ ")
MAX_PIECE: Final = 1 << 17
SLICE: Final = 1 << 16
"""Input given at a time: what follows a member is copied, so members may be tiny and the input must not be large."""


class Gzip:
    """A gzip stream; checks each member's CRC and length."""

    def __init__(self) -> None:
        self._member: igzip_lib.IgzipDecompressor | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give what the bytes decompress to."""
        for start in range(0, len(data), SLICE):
            rest = data[start : start + SLICE]
            while rest:
                if self._member is None:
                    self._member = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)
                rest = yield from self._go_on(self._member, rest)

    def _go_on(self, member: igzip_lib.IgzipDecompressor, data: bytes) -> Generator[bytes, None, bytes]:
        try:
            while True:
                if piece := member.decompress(data, MAX_PIECE):
                    yield piece
                if member.eof:
                    self._member = None
                    rest: bytes = member.unused_data
                    return rest
                if member.needs_input:
                    return b""
                data = b""
        except (_ISAL_ERROR, ValueError, EOFError) as fault:
            raise Unknown(f"gzip: {_NUMBERED.sub('', str(fault)).lower()}") from fault

    def finish(self) -> Iterator[bytes]:
        """End; raises Unknown inside of a member."""
        if self._member is not None:
            raise Unknown("gzip: unexpected end of the stream")
        return iter(())
