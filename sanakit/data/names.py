"""What an image's name decides: its split and its place among the evaluation images, so that neither ever moves."""

import hashlib

HELD_OUT_SHARE = 0.1
ORDER_SEED = 0  # of `evaluation_order`; another value moves every evaluation image


def safe_name(name: str) -> str:
    """A name that UTF-8 can hold: lone surrogates, which stand for the bytes of file names in other encodings, are
    escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def evaluation_order(name: str) -> bytes:
    """Sort key of an image within its split: a hash of its name and ORDER_SEED, independent of `is_held_out`.

    Data sets lie on disk sorted by class or source. Whatever evaluates the first K images of a split needs this order.
    """
    return hashlib.sha256(f"{ORDER_SEED}\0{name}".encode()).digest()
