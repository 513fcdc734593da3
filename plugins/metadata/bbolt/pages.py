"""The numbers of bbolt's file format, version 2, in little endian byte order (that of amd64 and arm64).

file    = page * n, all of one size; the first two are metas
page    = id:u64 flags:u16 count:u16 overflow:u32  elements  data     (and `overflow` more pages of data)
leaf    elements: flags:u32 pos:u32 key size:u32 value size:u32; pos counts from the element to its key
branch  elements: pos:u32 key size:u32 child page:u64
bucket  value: root page:u64 sequence:u64; root page 0 is followed by a leaf page, inline
meta    magic:u32 version:u32 page size:u32 flags:u32 root page:u64 root sequence:u64 free list page:u64
        high-water mark:u64 transaction:u64 checksum:u64 (FNV-1a 64 of what is before)
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = 0xED0CDAED
VERSION: Final = 2
BRANCH, LEAF, META, FREE_LIST = 0x01, 0x02, 0x04, 0x10
BUCKET_FLAG: Final = 1
NO_FREE_LIST: Final = 0xFFFFFFFFFFFFFFFF

PAGE: Final = struct.Struct("<QHHI")
LEAF_ELEMENT: Final = struct.Struct("<IIII")
BRANCH_ELEMENT: Final = struct.Struct("<IIQ")
ELEMENT_SIZE: Final = 16
BUCKET: Final = struct.Struct("<QQ")
META_BODY: Final = struct.Struct("<IIIIQQQQQ")
META_SIZE: Final = META_BODY.size + 8
PAGE_ID: Final = struct.Struct("<Q")

MAX_COUNT: Final = 65534
"""Elements of a page."""
LARGE_COUNT: Final = 0xFFFF
"""In a free list: the true count is the first number of the list."""

DEFAULT_PAGE_SIZE: Final = 4096
PAGE_SIZES: Final = tuple(1024 << n for n in range(15))
"""Where bbolt looks for the second meta when the first is bad."""


def checksum(body: bytes) -> int:
    """Give FNV-1a 64 of a meta's bytes."""
    number = 0xCBF29CE484222325
    for byte in body:
        number = (number ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return number
