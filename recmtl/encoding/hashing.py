"""A 64-bit hash of texts that is fixed for good: MurmurHash64A, of all texts of a column at once.

    h = seed XOR (length · M);  each 8-byte block k:  k·M, k XOR k>>47, k·M, h XOR k, h·M;  the rest: h XOR rest, h·M;
    at the end  h XOR h>>47, h·M, h XOR h>>47       (all modulo 2^64, little-endian; Austin Appleby, public domain)

The engine that runs the recipes has a hash of its own, which may change from one version to the next; a vocabulary must
outlive both. Texts longer than `LONG_BYTES` are hashed by BLAKE2b, as one block more costs a pass over the column.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

HASH_NAME = "murmur64a, blake2b beyond 1024 bytes"
"""How files name the rule."""
LONG_BYTES = 1024
MULTIPLIER = np.uint64(0xC6A4A7935BD1E995)
SHIFT = np.uint64(47)
WORD = 8


def hash_texts(texts: pa.Array) -> np.ndarray:
    """The hashes of the UTF-8 bytes of texts, or of binary values.

    Args:
        texts: of type string, large_string, binary or large_binary; the hash of a null is any.

    Returns:
        uint64 [n].
    """
    data, offsets = _bytes(texts)
    lengths = np.diff(offsets)
    long = lengths > LONG_BYTES
    hashes = _murmur(data, offsets[:-1], np.where(long, 0, lengths))
    for row in np.flatnonzero(long):
        digest = hashlib.blake2b(data[offsets[row] : offsets[row + 1]].tobytes(), digest_size=WORD)
        hashes[row] = int.from_bytes(digest.digest(), "little")
    return hashes


def _bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all texts with a word of zeros after them, and where each begins (int64 [n + 1])."""
    is_large = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
    large = texts if is_large else texts.cast(pa.large_binary())
    _, offset_buffer, data_buffer = large.buffers()
    offsets = (
        np.frombuffer(offset_buffer, np.int64)[large.offset : large.offset + len(large) + 1] if len(large) else None
    )
    if offsets is None or data_buffer is None:
        return np.zeros(WORD, np.uint8), np.zeros(len(large) + 1, np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + WORD, np.uint8)
    data[:-WORD] = np.frombuffer(data_buffer, np.uint8)[first:last]
    return data, offsets - first


def _murmur(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """MurmurHash64A with seed 0 of the bytes start … start + length − 1 of every text."""
    # A word at every byte: processors read them wherever they begin.
    words: np.ndarray = np.ndarray(len(data) - WORD + 1, "<u8", data, strides=(1,))
    hashes = lengths.astype(np.uint64) * MULTIPLIER
    blocks = lengths // WORD
    rows = np.flatnonzero(blocks)
    block = 0
    while len(rows):
        mixed = words[starts[rows] + WORD * block] * MULTIPLIER
        mixed ^= mixed >> SHIFT
        mixed *= MULTIPLIER
        hashes[rows] = (hashes[rows] ^ mixed) * MULTIPLIER
        block += 1
        rows = rows[blocks[rows] > block]
    rest = lengths % WORD
    rows = np.flatnonzero(rest)
    mask = (np.uint64(1) << (rest[rows] * WORD).astype(np.uint64)) - np.uint64(1)
    hashes[rows] = (hashes[rows] ^ (words[starts[rows] + WORD * blocks[rows]] & mask)) * MULTIPLIER
    hashes ^= hashes >> SHIFT
    hashes *= MULTIPLIER
    hashes ^= hashes >> SHIFT
    return hashes
