"""The hash of texts, against the published algorithm one byte string at a time."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from murmur import murmur64a

from recmtl.encoding.hashing import LONG_BYTES, hash_texts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40)), st.integers(0, 3))
def test_it_is_murmur_hash_64a(texts: list[bytes], skip: int) -> None:
    array = pa.array([b"before"] * skip + texts, pa.binary())[skip:]
    assert hash_texts(array).tolist() == [murmur64a(text) for text in texts]


def test_fixed_values() -> None:
    # Vocabularies on disk hold these: they may never change.
    hashes = hash_texts(pa.array(["", "a", "hello world", "é"])).tolist()
    assert hashes == [0, 510903276987443985, 15256545620076441550, murmur64a("é".encode())]


def test_long_texts_are_hashed_by_blake2b() -> None:
    texts = ["x" * LONG_BYTES, "x" * (LONG_BYTES + 1), "y" * 10_000_000, "z"]
    hashes = hash_texts(pa.array(texts)).tolist()
    blake = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts]
    murmur = [murmur64a(text.encode()) for text in (texts[0], texts[3])]
    assert hashes == [murmur[0], blake[1], blake[2], murmur[1]]


def test_all_types_of_text_agree() -> None:
    texts = ["a", "bb", "ccccccccc"]
    types = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    assert len({tuple(hash_texts(pa.array(texts).cast(kind)).tolist()) for kind in types}) == 1
