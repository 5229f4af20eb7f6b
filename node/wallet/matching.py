"""Which of the offered machines does a job best: a pure function of the job's needs and the offers.

Best is what costs least until the job is done: the price divided by the chance that the machine's donor finishes it.
Between equals the machine of one's own institution comes first: help at home, then abroad. Donors choose which of
their GPUs a job gets, so a machine counts as one with a certain kind of GPU only when all of its GPUs are of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from protocol.errors import Rejected
from protocol.metering import Rate, compute_charge
from protocol.quotes import Offer, QuoteRequest, check_request_fits, compute_rate
from protocol.reliability import PRIOR_SCORE, SCORE_MAX

_GPU_MEMORY = re.compile(r"(\d+) ?GI?B\b", re.IGNORECASE)

ANY_GPU = "gpu"


class GpuWish(NamedTuple):
    """So many GPUs of one kind. `name` is words of the GPU's name, in any order, as in A100 or A100-80GB; `GPU` is any
    kind."""

    name: str
    number: int


@dataclass(frozen=True, kw_only=True)
class JobNeeds:
    """What a job asks of a machine, and the credits that it may take."""

    runtime: str | None
    cores: int
    memory_bytes: int
    disk_bytes: int
    gpus: tuple[GpuWish, ...]
    """Any one of these will do; none at all: the job uses no GPU."""
    gpu_memory_gb: int
    """Least memory of each GPU; 0 when it does not matter."""
    is_online: bool
    hosts: tuple[str, ...]
    """Those that it must reach, as `name:port`; none: whatever the donor allows."""
    wall_seconds: int
    amount_max: int | None
    """Most millicredits to spend in all."""
    program: str | None
    """The only budget to spend, by name or id."""
    job_class: str


class DonorScore(NamedTuple):
    """How reliable a donor was so far, in short (spec 12.13)."""

    score: int
    """Of SCORE_MAX; taken for the chance that it finishes a job, which it is not exactly: what is long ago fades."""
    jobs: int
    """How many have ended that this rests on."""


UNKNOWN = DonorScore(PRIOR_SCORE, 0)
"""Of a donor that nobody knows yet: better than a bad record, worse than a good one, so a newcomer gets work when it is
cheap, or when the others are busy."""


class KnownOffer(NamedTuple):
    """An offer, and what is known of its donor."""

    offer: Offer
    member: int = 0
    """The member that vouches for the donor; 0 when that is not known."""
    reliability: DonorScore = UNKNOWN


class Match(NamedTuple):
    """A machine that can do the job, and what that would cost there."""

    offer: Offer
    member: int
    reliability: DonorScore
    is_local: bool
    """The member that vouches for the donor has also enrolled the payer."""
    rate: Rate
    gpus: int
    runtime: bytes
    """Digest, or none."""
    amount_max: int
    """Millicredits for the whole of the wall time."""

    @property
    def expected_cost(self) -> int:
        """Millicredits until it is done, when every try is paid in full: price by chance of success, rounded up."""
        return -(-self.amount_max * SCORE_MAX // max(1, self.reliability.score))


class Preference(StrEnum):
    """What counts first among machines that can do the job."""

    EXPECTED_COST = "expected-cost"
    PRICE = "price"
    RELIABILITY = "reliability"
    LOCAL = "local"


_ORDERS: dict[Preference, Callable[[Match], tuple[int, ...]]] = {
    Preference.EXPECTED_COST: lambda match: (match.expected_cost, not match.is_local, match.amount_max),
    Preference.PRICE: lambda match: (match.amount_max, not match.is_local, -match.reliability.score),
    Preference.RELIABILITY: lambda match: (-match.reliability.score, match.amount_max, not match.is_local),
    Preference.LOCAL: lambda match: (not match.is_local, match.expected_cost, match.amount_max),
}


class Misfit(Exception):
    """This machine can't do the job. The text says why, in a few words."""


def find_matches(
    needs: JobNeeds,
    offers: Iterable[KnownOffer],
    *,
    own_members: frozenset[int] = frozenset(),
    prefer: Preference = Preference.EXPECTED_COST,
    payer: bytes = b"",
) -> tuple[list[Match], list[str]]:
    """(the machines that can do it, best first; why each of the others can't).

    Machines that are equal in everything come in an order of the payer's own, so that not everybody asks the same
    donor first.
    """
    matches, reasons = [], []
    for known in offers:
        try:
            matches.append(match_offer(needs, known, own_members))
        except Misfit as misfit:
            reasons.append(str(misfit))
    order = _ORDERS[prefer]
    matches.sort(key=lambda match: (order(match), sha256(payer + match.offer.donor_key).digest(), match.offer.machine))
    return matches, reasons


def match_offer(needs: JobNeeds, known: KnownOffer, own_members: frozenset[int] = frozenset()) -> Match:
    """What the job would cost on this machine. Raises: Misfit."""
    offer = known.offer
    gpus = _choose_gpus(offer, needs)
    if missing := set(needs.hosts).difference(offer.hosts):
        raise Misfit(f"{offer.machine} lets no job reach {min(missing)}")
    request = make_request(needs, gpus, _find_runtime(offer, needs.runtime))
    try:
        check_request_fits(offer, request)
    except Rejected as rejection:
        raise Misfit(rejection.detail) from None
    rate = compute_rate(offer, request)
    return Match(
        offer=offer,
        member=known.member,
        reliability=known.reliability,
        is_local=known.member in own_members,
        rate=rate,
        gpus=gpus,
        runtime=request.runtime,
        amount_max=compute_charge(needs.wall_seconds * 1000, rate),
    )


def make_request(needs: JobNeeds, gpus: int, runtime: bytes) -> QuoteRequest:
    """The resources of a job as a request without keys: what the price depends on."""
    return QuoteRequest(
        account=b"",
        meter_key=b"",
        seal_key=b"",
        result_key=b"",
        cores=needs.cores,
        memory_bytes=needs.memory_bytes,
        disk_bytes=needs.disk_bytes,
        gpus=gpus,
        is_online=int(needs.is_online),
        wall_seconds=needs.wall_seconds,
        runtime=runtime,
        job_class=needs.job_class,
        mailbox_to_donor=b"",
        mailbox_to_wallet=b"",
        signature=b"",
    )


def is_gpu(name: str, wanted: str) -> bool:
    """Whether every word of what is wanted stands in the GPU's name: an A10 is no A100."""
    return wanted.lower() == ANY_GPU or _split(wanted) <= _split(name)


def _split(name: str) -> set[str]:
    return set(re.split(r"[\s_-]+", _GPU_MEMORY.sub(r"\1GB", name).lower()))


def _choose_gpus(offer: Offer, needs: JobNeeds) -> int:
    """How many GPUs the first wish asks for that this machine can grant."""
    if not needs.gpus:
        return 0
    has = ", ".join(sorted({gpu.name for gpu in offer.gpus})) or "none"
    if any(gpu.memory_gb < needs.gpu_memory_gb for gpu in offer.gpus):
        raise Misfit(f"{offer.machine} does not have GPUs of {needs.gpu_memory_gb} GB (it has: {has})")
    for wish in needs.gpus:
        if len(offer.gpus) >= wish.number and all(is_gpu(gpu.name, wish.name) for gpu in offer.gpus):
            return wish.number
    wanted = " or ".join(f"{wish.number} {wish.name}" for wish in needs.gpus)
    raise Misfit(f"{offer.machine} does not have the GPUs {wanted} (it has: {has})")


def _find_runtime(offer: Offer, name: str | None) -> bytes:
    if name is None:
        return b""
    for runtime in offer.runtimes:
        if runtime.name == name:
            return runtime.digest
    names = ", ".join(runtime.name for runtime in offer.runtimes) or "none"
    raise Misfit(f"{offer.machine} does not have the runtime {name} (it has: {names})")
