"""A peer's name is its public key, written as text: the peer id that begins with 12D3KooW.

The form is libp2p's: base58 of an identity multihash (00 24) around the protobuf of an Ed25519 key (08 01 12
20). It is computed here in a few lines because a wallet or a charter tool needs the name without loading a
network stack. Source: the libp2p specification, "Peer Ids and Keys".
"""

from __future__ import annotations

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PREFIX = bytes.fromhex("002408011220")


def compute_peer_id(public_key: bytes) -> str:
    """The peer id of a raw Ed25519 public key (32 bytes)."""
    if len(public_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    number = int.from_bytes(_PREFIX + public_key, "big")
    letters = []
    while number:
        number, value = divmod(number, 58)
        letters.append(_ALPHABET[value])
    # The single leading zero byte of the prefix is written as one "1".
    return "1" + "".join(reversed(letters))
