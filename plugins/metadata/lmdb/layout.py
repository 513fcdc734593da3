"""How nested buckets lie in LMDB's one sorted map: format 2.

    key                          value
    -----------------------------------------------------------------------------------------
    0:u64 "format"               "moored-buckets 1"
    0:u64 "next"                 next space id that was never used: u64
    B:u64                        sequence number of bucket B: u64; absent = 0
    S:u64 piece                  00 data            a value whose name ends with this piece
    S:u64 piece                  01 B:u64           a bucket whose name ends with this piece
    S:u64 piece(502 bytes) 00    02 S:u64           names that go on after this piece: space S
    S:u64 piece                  03 tree            a small bucket, whole
    S:u64 piece                  04 tree            the same with sequence numbers in it

All integers are big endian, so that keys sort by id first. A *space* is a bucket or the continuation of long names;
each has an id of its own, which is never used again. The root bucket is space 1.

LMDB's keys have at most 511 bytes, names may have many more. A name of up to 502 bytes is one piece. A longer one is
cut into pieces of 502 bytes; each but the last leads, by a key with a NUL after the piece, to the space of all names
of that bucket that start with the pieces so far and go on. Only there is a piece followed by anything, so the keys
are distinct:

    names in bucket 7:  "a", P, P+"x", P+"y", "q"     (P has 502 bytes, "a" < P < "q")
    keys:               7"a"  7P  7P00 -> space 9  7"q"         9"x"  9"y"

and their order is the order of the full names: 7P ends where 7P00 goes on, and all that starts with P stands between
what is less and what is greater than P. Hashing long names would need less space, but a step of a cursor would have to
read and sort all long names with the same beginning, and clients choose the names. A continuation is never empty: the
last name that leaves takes it along.

A small bucket (limits: `small`) is one record, so that an object is read and written at once: each access to LMDB lets
other threads run, which costs more than what it does. Its tree is a MessagePack map of names to values (bin) and to the
maps of the buckets in it; a sequence number stands under the empty name, in 8 bytes. A bucket that has outgrown this is
spread over a space of its own, where its values and buckets, each small again, are records; it stays there.

Format 1 had no small buckets and is read as it is; opening it writes the new number, so that programs which only know
format 1 refuse it.
"""

from __future__ import annotations

import struct
from typing import Final

MAX_LMDB_KEY: Final = 511
ID_SIZE: Final = 8
PIECE: Final = MAX_LMDB_KEY - ID_SIZE - 1
"""Bytes of a name in one LMDB key; one byte is left for the NUL of a continuation."""

ID: Final = struct.Struct(">Q")
VALUE, BUCKET, MORE, SMALL, NUMBERED = 0, 1, 2, 3, 4
VALUE_TAG, BUCKET_TAG, MORE_TAG, SMALL_TAG, NUMBERED_TAG = b"\x00", b"\x01", b"\x02", b"\x03", b"\x04"
NUL: Final = b"\0"

ROOT: Final = ID.pack(1)
FIRST_FREE: Final = ID.pack(2)
FORMAT_KEY: Final = ID.pack(0) + b"format"
NEXT_KEY: Final = ID.pack(0) + b"next"
FORMAT: Final = b"moored-buckets 2"
OLD_FORMAT: Final = b"moored-buckets 1"
NUMBERED_FORMAT: Final = rb"moored-buckets [0-9]+"
