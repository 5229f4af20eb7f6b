"""What people write after the options of `allmende charter`, read and checked."""

from __future__ import annotations

from pathlib import Path

from node.errors import UserError
from node.operator.founding import ACCEPTABLE_USE_BYTES_MAX
from protocol.credits import parse_credits
from protocol.errors import InvalidInput
from protocol.limits import WEIGHT_MAX


def parse_credits_option(option: str, text: str) -> int:
    """Millicredits. Raises: UserError."""
    try:
        return parse_credits(text)
    except InvalidInput as error:
        raise UserError(f"{option}: {error}") from None


def parse_weight(text: str) -> tuple[str, int]:
    """NAME=W. Raises: UserError."""
    name, _, digits = text.rpartition("=")
    if not name or not digits.isascii() or not digits.isdigit() or not 1 <= int(digits[:9]) <= WEIGHT_MAX:
        raise UserError(f"--weight {text}: write it like --weight 'University A=2'")
    return name, int(digits)


def split_assignment(text: str) -> tuple[str, str]:
    """NAME=VALUE. Raises: UserError."""
    name, _, value = text.rpartition("=")
    if not name or not value:
        raise UserError(f"{text!r} must be written like 'University A=...'")
    return name, value


def read_use_policy(path: Path) -> str:
    """The text of a use policy. Raises: UserError."""
    try:
        with open(path, "rb") as file:
            text = file.read(ACCEPTABLE_USE_BYTES_MAX + 1).decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text (UTF-8)") from None
    if not text.strip() or len(text.encode()) > ACCEPTABLE_USE_BYTES_MAX:
        raise UserError(f"{path}: a use policy has 1 to {ACCEPTABLE_USE_BYTES_MAX} bytes of text")
    return text
