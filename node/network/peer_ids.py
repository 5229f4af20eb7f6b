"""A peer's name is its public key, written as text: the peer id that begins with 12D3KooW.

The form is libp2p's: base58 of an identity multihash (00 24) around the protobuf of an Ed25519 key (08 01 12
20). It is computed here in a few lines because a wallet or a charter tool needs the name without loading a
network stack. Source: the libp2p specification, "Peer Ids and Keys".
"""

from __future__ import annotations

from protocol.errors import InvalidInput

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_PREFIX = bytes.fromhex("002408011220")
_PEER_ID_BYTES = len(_PREFIX) + 32
_LETTERS_MAX = 64


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


def compute_public_key(peer_id: str) -> bytes:
    """The raw Ed25519 public key inside a peer id. Raises InvalidInput for any other text."""
    if len(peer_id) > _LETTERS_MAX or not all(letter in _VALUES for letter in peer_id):
        raise InvalidInput("a peer id is base58 text")
    number = 0
    for letter in peer_id:
        number = number * 58 + _VALUES[letter]
    if number.bit_length() > 8 * _PEER_ID_BYTES:
        raise InvalidInput("the peer id is too long for an Ed25519 key")
    raw = number.to_bytes(_PEER_ID_BYTES, "big")
    public_key = raw[len(_PREFIX) :]
    if not raw.startswith(_PREFIX) or compute_peer_id(public_key) != peer_id:
        raise InvalidInput("the peer id holds no Ed25519 key")
    return public_key
