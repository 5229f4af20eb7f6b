"""What a canary job computes: products of random whole-number matrices, and a chain of hashes over them.

Its source is sent to the donor, so it imports nothing but the standard library. Whole numbers give the same result on
every machine; each step needs the one before, so no part can be left out.
"""

import hashlib


def make_matrix(seed: str, size: int) -> list[list[int]]:
    """A square matrix of 16-bit numbers that follow from the seed."""
    rows = []
    for row in range(size):
        line: list[int] = []
        block = 0
        while len(line) < size:
            digest = hashlib.sha256(f"{seed}/{row}/{block}".encode()).digest()
            line += [int.from_bytes(digest[place : place + 2], "big") for place in range(0, 32, 2)]
            block += 1
        rows.append(line[:size])
    return rows


def multiply(first: list[list[int]], second: list[list[int]], modulus: int) -> list[list[int]]:
    """The matrix product, modulo a prime."""
    columns = list(zip(*second, strict=True))
    return [
        [sum(one * other for one, other in zip(row, column, strict=True)) % modulus for column in columns]
        for row in first
    ]


def compute(seed: str, size: int, rounds: int, modulus: int) -> str:
    """The result: a digest in hex."""
    current = make_matrix(seed, size)
    digest = hashlib.sha256(seed.encode()).hexdigest()
    for _ in range(rounds):
        current = multiply(current, make_matrix(digest, size), modulus)
        digest = hashlib.sha256((digest + str(current)).encode()).hexdigest()
    return digest
