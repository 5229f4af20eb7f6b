"""What a job would cost, where, and what could go wrong: the plan as a person reads it before anything is spent.

What is due for each end is asked of the rules (`CHARGED_STATES`, spec 12.4), not written down a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from node.addresses import Kind, encode_address
from node.terminal import format_date
from node.wallet.matching import DonorScore, JobNeeds, Match, Preference
from node.wallet.offers import get_member_name
from protocol.credits import format_credits
from protocol.metering import CHARGED_STATES, END_STATES, JobState, compute_charge
from protocol.reliability import SCORE_MAX

if TYPE_CHECKING:
    from node.wallet.jobs import JobPlan
    from node.wallet.wallet import Wallet

ROWS_MAX = 5
NAME_WIDTH = 22
NAMES_MAX = 3
END_MEANINGS = {
    JobState.DONE: "it exits with status 0",
    JobState.USER_FAILED: "it exits otherwise, or breaks a limit",
    JobState.CANCELLED: "you stop it",
    JobState.WALLTIME: "its longest time is over",
    JobState.POLICY_KILLED: "your wallet does not answer the meter",
    JobState.DONOR_FAILED: "it can't start, or the machine fails",
    JobState.EVICTED: "the owner takes the machine back",
}
"""How each end of a job comes about, in the order of the spec."""
_REASONS = {
    Preference.EXPECTED_COST: "least cost until it is done (the price divided by the donor's reliability)",
    Preference.PRICE: "the lowest price, as you asked",
    Preference.RELIABILITY: "the most reliable donor, as you asked",
    Preference.LOCAL: "your own institution's machines first, as you asked",
}


def describe_due(state: JobState) -> str:
    """What a job costs that ends so."""
    assert state in END_STATES
    if state in CHARGED_STATES:
        return "the time that it ran"
    return "up to the last checkpoint that you have; nothing without one"


def describe_plan(wallet: Wallet, plan: JobPlan, name: str, secrets: tuple[str, ...]) -> dict[str, Any]:
    """The plan for programs; amounts in millicredits."""
    best = plan.priced
    return {
        "name": name,
        "machine": best.offer.machine,
        "donor": _encode_donor(wallet, best),
        "weight": best.rate.weight,
        "cores": best.rate.cores,
        "memory_gb": best.rate.memory_gb,
        "gpus": best.rate.gpus,
        "hosts": list(best.offer.hosts) if plan.needs.is_online else [],
        "wall_seconds_max": plan.needs.wall_seconds,
        "millicredits_max": best.amount_max,
        "millicredits_max_elsewhere": plan.amount_max,
        "secrets": list(secrets),
        "prefer": str(plan.prefer),
        "draws": [
            {
                "program": encode_address(Kind.PROGRAM, lot.program) if lot.program else None,
                "expiry_epoch": lot.expiry_epoch,
                "millicredits": amount,
            }
            for lot, amount in plan.draws
        ],
        "offers": [_describe_match(wallet, match) for match in plan.matches],
        "unfit": list(plan.reasons),
        "refunds": [
            {
                "end": str(state),
                "meaning": meaning,
                "is_charged": state in CHARGED_STATES,
                "due": describe_due(state),
            }
            for state, meaning in END_MEANINGS.items()
        ],
        "risks": list(iterate_risks(wallet, plan, secrets)),
    }


def _describe_match(wallet: Wallet, match: Match) -> dict[str, Any]:
    return {
        "machine": match.offer.machine,
        "donor": _encode_donor(wallet, match),
        "institution": get_member_name(wallet, match.member),
        "is_local": match.is_local,
        "millicredits_an_hour": compute_charge(3_600_000, match.rate),
        "millicredits_max": match.amount_max,
        "millicredits_expected": match.expected_cost,
        "reliability_score": match.reliability.score,
        "reliability_jobs": match.reliability.jobs,
    }


def iterate_plan(wallet: Wallet, plan: JobPlan, name: str, secrets: tuple[str, ...]) -> Iterator[str]:
    """The plan for people, on one screen."""
    yield f"{name}: {_describe_needs(plan)}"
    yield f"  {'MACHINE':<{NAME_WIDTH}} {'VOUCHED FOR BY':<28} {'CREDITS/HOUR':>12} {'AT MOST':>12}  RELIABILITY"
    for number, match in enumerate(plan.matches[:ROWS_MAX]):
        member = get_member_name(wallet, match.member) + (" (yours)" if match.is_local else "")
        yield (
            f"{'*' if number == 0 else ' '} {match.offer.machine[:NAME_WIDTH]:<{NAME_WIDTH}} {member[:28]:<28} "
            f"{format_credits(compute_charge(3_600_000, match.rate)):>12} {format_credits(match.amount_max):>12}  "
            f"{describe_reliability(match.reliability)}"
        )
    if len(plan.matches) > ROWS_MAX:
        yield f"  and {len(plan.matches) - ROWS_MAX} more"
    yield from _iterate_choice(plan)
    yield f"It would put aside {format_credits(plan.priced.amount_max)} credits; what is not used comes back:"
    for lot, amount in plan.draws:
        origin = f"of {_get_program_name(wallet, lot.program)}" if lot.program else "earned"
        yield f"  {format_credits(amount)} {origin}{_describe_expiry(wallet, lot.expiry_epoch)}"
    yield "What you pay when ..."
    for state, meaning in END_MEANINGS.items():
        yield f"  {meaning:<40} {describe_due(state):<62} {state}"
    yield "What could go wrong"
    for risk in iterate_risks(wallet, plan, secrets):
        yield f"  - {risk}"


def describe_reliability(reliability: DonorScore) -> str:
    """A donor's record in a few words."""
    rests_on = f"{reliability.jobs} jobs" if reliability.jobs else "not known yet"
    return f"{reliability.score} of {SCORE_MAX}, {rests_on}"


def _describe_needs(plan: JobPlan) -> str:
    needs, rate = plan.needs, plan.priced.rate
    gpus = f"{rate.gpus} GPU{'s' if rate.gpus > 1 else ''}" if rate.gpus else "no GPU"
    cores = f"{rate.cores} core{'s' if rate.cores > 1 else ''}"
    return f"{cores}, {rate.memory_gb} GB, {gpus}, for at most {_format_duration(needs)}"


def _format_duration(needs: JobNeeds) -> str:
    parts, seconds = [], needs.wall_seconds
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            parts.append(f"{seconds // length} {unit}")
            seconds %= length
    return " ".join(parts[:2])


def _iterate_choice(plan: JobPlan) -> Iterator[str]:
    if len(plan.matches) == 1:
        yield "* the only machine that can do it"
        return
    yield f"* asked first: {_REASONS[plan.prefer]}"
    others = ", then ".join(match.offer.machine[:NAME_WIDTH] for match in plan.asked[1:])
    is_dearer = plan.amount_max > plan.priced.amount_max
    at_most = f" (up to {format_credits(plan.amount_max)} credits)" if is_dearer else ""
    yield f"  if it refuses: {others}{at_most}"


def _list_some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_MAX
    return ", ".join(name[:NAME_WIDTH] for name in names[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


def _get_program_name(wallet: Wallet, program: bytes) -> str:
    address = encode_address(Kind.PROGRAM, program)
    return next((one.name for one in wallet.client.get_programs() if one.id == address), "a program")


def _describe_expiry(wallet: Wallet, epoch: int) -> str:
    return f", good until {format_date(wallet.compute_epoch_end(epoch))}" if epoch else ""


def iterate_risks(wallet: Wallet, plan: JobPlan, secrets: tuple[str, ...]) -> Iterator[str]:
    """What a person risks with the best machine of the plan, one line each."""
    best, needs = plan.priced, plan.needs
    minute = format_credits(compute_charge(60_000, best.rate))
    yield f"Between two readings of the meter (see the quote) you trust the donor: {minute} credits a minute."
    yield "When the machine fails, the job goes on elsewhere from its folder checkpoint, or else from the start."
    yield "A donor that fails can still take what its meter has counted; you see it, and can dispute it."
    yield (
        f"A donor that never settles keeps {format_credits(best.amount_max)} credits locked until "
        "`allmende job reclaim` and its grace."
    )
    yield "Keep the command running: a donor stops a job whose wallet falls silent for a reading."
    shown = f", and the secrets {_list_some(secrets)}" if secrets else ""
    yield f"The donor can see program and files{shown}. Everybody else sees amounts, times and sizes only."
    yield "Results are the donor's word: `allmende job recheck` runs them elsewhere, and compares."
    if needs.is_online:
        yield f"It can reach nothing but {_list_some(best.offer.hosts)}."
    else:
        yield "It can't reach any network."
    if expiring := [lot.expiry_epoch for lot, _ in plan.draws if lot.expiry_epoch]:
        yield f"What comes back after {format_date(wallet.compute_epoch_end(min(expiring)))} has expired, and is lost."
    yield "A quote is good for some minutes; if the job does not start in time, nothing is spent."


def _encode_donor(wallet: Wallet, match: Match) -> str:
    return encode_address(Kind.ACCOUNT, match.offer.compute_donor(wallet.federation))
