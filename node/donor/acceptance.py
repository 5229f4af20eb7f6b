"""Who may use this machine, and for how much: asked before a quote is given, and again when the job starts.

The owner lists whom it allows and denies, and sets limits per job, per account and per epoch. What it refuses it
refuses in one line, which the wallet shows (spec 12.9). An account is a pseudonym: the donor sees which institutions
vouch for the person behind it, as its own node tells, and not who that is.

All of it is pure: settings, the account as the node shows it, and what was used here so far give the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.donor.earnings import Use
from node.donor.hours import compute_seconds_left
from node.donor.job_file import Institution
from node.donor.settings import Settings
from node.donor.who import Who, parse_who
from protocol.charter import Charter
from protocol.credits import MILLICREDITS_PER_CREDIT, format_credits
from protocol.errors import Reason, Rejected
from protocol.quotes import QuoteRequest
from protocol.records import Draw

_NOT_TAKEN = "the donor takes no jobs of this account"


def check_request(
    settings: Settings,
    charters: Mapping[int, Charter],
    request: QuoteRequest,
    amount_max: int,
    account: api.Account,
    use: Use,
    local: datetime,
) -> None:
    """Return when the owner lets this job ask for a quote. `amount_max` is the highest price in millicredits, `local`
    the time on this machine's clock.

    Raises: Rejected, with a detail for the person who asks: POLICY for what the owner decided, LIMIT_EXCEEDED for its
    limits, FUNDS_MISSING when the account could not pay with credits that the owner takes.
    """
    if not is_use_policy_accepted(settings, charters):
        raise Rejected(Reason.POLICY, "the donor has not accepted the federation's new use policy yet")
    institutions = list_institutions(account)
    _check_account(settings, request.account, institutions)
    _check_job(settings, request, amount_max)
    left = compute_seconds_left(settings.hours, local)
    if left is not None and request.wall_seconds > left:
        raise Rejected(Reason.LIMIT_EXCEEDED, f"the machine is lent for {left // 60} minutes more: ask for less time")
    _check_use(settings, amount_max, use)
    _check_funds(settings, request.account, institutions, amount_max, account)


def check_start(
    settings: Settings,
    account: bytes,
    institutions: Sequence[Institution],
    draws: Iterable[Draw],
    amount_max: int,
    use: Use,
) -> None:
    """Return when the hold that starts a job draws on credits that the owner takes, and its limits still hold.

    Only now is it known which programs pay; and quotes that were given side by side must not pass a limit together.
    `use` leaves out the job itself. Raises: Rejected.
    """
    _check_account(settings, account, institutions)
    _check_use(settings, amount_max, use)
    for draw in draws:
        if not _is_program_taken(settings, account, institutions, draw.program):
            program = encode_address(Kind.PROGRAM, draw.program) if draw.program else "no program"
            raise Rejected(Reason.POLICY, f"the donor takes no credits of {program} from this account")


def is_use_policy_accepted(settings: Settings, charters: Mapping[int, Charter]) -> bool:
    """Whether the owner accepted the use policy that is in force, and so is in the terms of every hold (spec 7.6).

    Settings that name none stand for the one of the founding, which was shown at the set-up.
    """
    accepted = bytes.fromhex(settings.acceptable_use) or charters[0].policy.acceptable_use
    return charters[max(charters)].policy.acceptable_use == accepted


def list_institutions(account: api.Account) -> list[Institution]:
    """The members that vouch for the person now, as the node says."""
    current = (entry for entry in account.enrolments if not entry.until_epoch or entry.until_epoch >= account.epoch)
    return sorted({Institution(entry.member, entry.member_name) for entry in current}, key=lambda found: found.number)


def describe_payer(account: bytes, institutions: Sequence[Institution]) -> str:
    """Who pays for a job, for a log line."""
    vouching = ", ".join(found.name or f"member {found.number}" for found in institutions)
    return f"{encode_address(Kind.ACCOUNT, account)} ({vouching or 'no institution vouches for it'})"


# -- lists ----------------------------------------------------------------------------------------------------------


def _check_account(settings: Settings, account: bytes, institutions: Sequence[Institution]) -> None:
    if _is_named(settings.deny, account, institutions):
        raise Rejected(Reason.POLICY, _NOT_TAKEN)
    is_program_allowed = any(parse_who(entry).kind == "program" for entry in settings.allow)
    if settings.allow and not is_program_allowed and not _is_named(settings.allow, account, institutions):
        raise Rejected(Reason.POLICY, _NOT_TAKEN)


def _is_named(entries: Sequence[str], account: bytes, institutions: Sequence[Institution]) -> bool:
    """Whether a list names the account itself or an institution that vouches for it."""
    named = set(map(parse_who, entries))
    return Who("account", account) in named or any(
        Who("member", found.number) in named or Who("member", found.name) in named for found in institutions
    )


def _is_program_taken(settings: Settings, account: bytes, institutions: Sequence[Institution], program: bytes) -> bool:
    """Whether the owner takes credits of this program from an account that is not denied."""
    if Who("program", program) in map(parse_who, settings.deny):
        return False
    is_anybody_taken = not settings.allow or _is_named(settings.allow, account, institutions)
    return is_anybody_taken or Who("program", program) in map(parse_who, settings.allow)


# -- limits ---------------------------------------------------------------------------------------------------------


def _check_job(settings: Settings, request: QuoteRequest, amount_max: int) -> None:
    """The limits of one job; 0 is none. The longest time stands in the offer already, and what the machine has."""
    for asked, limit, unit in (
        (request.cores, settings.job_cores_max, "cores"),
        (request.memory_bytes, settings.job_memory_bytes_max, "bytes of memory"),
        (request.gpus, settings.job_gpus_max, "GPUs"),
        (request.wall_seconds, settings.wall_seconds_max, "s"),
    ):
        if limit and asked > limit:
            raise Rejected(Reason.LIMIT_EXCEEDED, f"the donor lets one job have {limit} {unit} at most")
    _check_credits("one job here may cost", amount_max, settings.job_credits_max)


def _check_use(settings: Settings, amount_max: int, use: Use) -> None:
    """What one account, and all together, may use here."""
    if settings.account_jobs_max and use.account_jobs >= settings.account_jobs_max:
        raise Rejected(
            Reason.LIMIT_EXCEEDED,
            f"the donor lets one account have {settings.account_jobs_max} jobs at a time: wait until one is settled",
        )
    _check_credits(
        "one account may use here in an epoch", use.account_millicredits + amount_max, settings.account_credits_max
    )
    _check_credits("all may use here in an epoch", use.millicredits + amount_max, settings.epoch_credits_max)


def _check_credits(what: str, millicredits: int, credits_max: int) -> None:
    if credits_max and millicredits > credits_max * MILLICREDITS_PER_CREDIT:
        raise Rejected(
            Reason.LIMIT_EXCEEDED,
            f"{what} {credits_max} credits; with this job it would be {format_credits(millicredits)}",
        )


def _check_funds(
    settings: Settings, payer: bytes, institutions: Sequence[Institution], amount_max: int, account: api.Account
) -> None:
    """Whether the account could pay, with credits that the owner takes: quotes are scarce."""
    usable = [lot for lot in account.lots if lot.millicredits and not 0 < lot.expiry_epoch < account.epoch]
    taken = [lot for lot in usable if _is_program_taken(settings, payer, institutions, _read_program(lot))]
    if sum(lot.millicredits for lot in taken) >= amount_max:
        return
    if sum(lot.millicredits for lot in usable) >= amount_max:
        raise Rejected(Reason.POLICY, "the donor takes credits of other programs only")
    raise Rejected(Reason.FUNDS_MISSING, "the account does not hold what the job could cost")


def _read_program(lot: api.Lot) -> bytes:
    return decode_address(Kind.PROGRAM, lot.program) if lot.program else b""
