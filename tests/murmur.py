"""MurmurHash64A of one byte string, as published."""

from __future__ import annotations

M, MASK = 0xC6A4A7935BD1E995, 2**64 - 1


def murmur64a(data: bytes) -> int:
    h = len(data) * M & MASK
    whole = len(data) // 8 * 8
    for start in range(0, whole, 8):
        k = int.from_bytes(data[start : start + 8], "little") * M & MASK
        h = (h ^ ((k ^ k >> 47) * M & MASK)) * M & MASK
    if data[whole:]:
        h = (h ^ int.from_bytes(data[whole:], "little")) * M & MASK
    h = (h ^ h >> 47) * M & MASK
    return h ^ h >> 47
