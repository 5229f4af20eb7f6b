"""How an id looks to people: `alm1q...`, with a checksum, so that a typing error never pays a stranger.

The rules know an id as 32 bytes. A person sees it in bech32m (BIP 350): a prefix that names the kind, the
digit 1, a version, the id, and six characters of checksum. Any change of up to four characters is found for
certain, a wilder one but for one chance in a thousand million. The prefix is under the checksum too, so no id
passes for another kind.

Of the package `bech32m` only the checksum and the change of base are used. Its `encode` follows the addresses
of Bitcoin: for version 0 it would quietly fall back to the older bech32, which misses an inserted `q` before
a last `p`.
"""

from __future__ import annotations

from enum import Enum

from node.errors import UserError

IDENTIFIER_BYTES = 32
VERSION = 0  # the first symbol after the separator, `q`; a later form of ids takes the next number


class Kind(Enum):
    """What an id names. The value is the prefix of its text."""

    ACCOUNT = "alm"
    FEDERATION = "almf"
    PROGRAM = "almp"
    RECORD = "almr"
    BATCH = "almb"

    @property
    def label(self) -> str:
        """The kind with its article, for sentences: `an account`, `a program id`."""
        return "an account" if self is Kind.ACCOUNT else f"a {self.name.lower()} id"


def encode_address(kind: Kind, identifier: bytes) -> str:
    """The text of a 32-byte id, in lower case."""
    from bech32m.codecs import Encoding, bech32_encode, convertbits

    assert len(identifier) == IDENTIFIER_BYTES, "an id has 32 bytes"
    symbols = bytes([VERSION]) + convertbits(identifier, 8, 5)
    text: str = bech32_encode(kind.value, symbols, Encoding.BECH32M)
    return text


def decode_address(kind: Kind, text: str) -> bytes:
    """The 32 bytes behind a text that must be of this kind. Spaces around it are forgiven, and all capitals.

    Raises: UserError, in one line, when anything else is amiss.
    """
    text = text.strip()
    found, identifier = _decode(text, kind)
    if found is not kind:
        raise UserError(f"{_shorten(text)} is {found.label}; {kind.label} is needed here")
    return identifier


def _decode(text: str, wanted: Kind) -> tuple[Kind, bytes]:
    """Take a text apart, whatever its kind. `wanted` is for the wording of errors alone."""
    from bech32m.codecs import DecodeError, Encoding, bech32_decode, convertbits

    shown = _shorten(text)
    if not text:
        raise UserError(f"{wanted.label} is needed, and the text is empty")
    if text != text.lower() and text != text.upper():
        raise UserError(f"{shown} mixes capital and small letters: copy it again, all small")
    prefix = text.lower().rpartition("1")[0]
    try:
        found = Kind(prefix)
    except ValueError:
        raise UserError(f"{shown} is not {wanted.label}: that starts with {wanted.value}1") from None
    try:
        _, symbols, encoding = bech32_decode(text)
        identifier = bytes(convertbits(symbols[1:], 5, 8, False))
        version = symbols[0] if symbols else None
    except DecodeError:
        raise UserError(f"{shown} has a typing error (its checksum is wrong): copy it again") from None
    if encoding is not Encoding.BECH32M:
        raise UserError(f"{shown} has the checksum of an older format: copy it again from its owner")
    if version != VERSION:
        raise UserError(f"{shown} is of a version that this program does not know: update allmende")
    if len(identifier) != IDENTIFIER_BYTES:
        raise UserError(f"{shown} has the wrong length: copy it again, whole")
    return found, identifier


def _shorten(text: str) -> str:
    """A text for a message: printable, in one line, and not too long to read."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= 72 else f"{printable[:60]}...{printable[-8:]}"


def qr_lines(text: str) -> list[str]:
    """A QR code to print on a terminal: two rows of modules a line, as half blocks.

    Light modules are drawn, dark ones left out, which suits the usual dark background; readers take the
    inverse too. An address goes in as capitals, for which QR has a denser alphabet (29 modules a side instead
    of 37).
    """
    from io import StringIO

    import segno

    drawn = StringIO()
    dense = text.upper() if _is_address(text) else text
    segno.make(dense, micro=False, error="m").terminal(drawn, border=2, compact=True)
    return drawn.getvalue().splitlines()


def _is_address(text: str) -> bool:
    """Whether the text may change its case without changing its meaning."""
    try:
        _decode(text, Kind.ACCOUNT)
    except UserError:
        return False
    return True
