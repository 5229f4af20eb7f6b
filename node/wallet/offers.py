"""Which machines donors lend now, and which one does a job for the least.

An offer is believed only with its donor's signature; that a member of the federation vouches for the donor is checked
by all members when the money is put aside. Prices are computed here, from the offer alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from node.errors import UserError
from protocol.errors import InvalidInput, Rejected
from protocol.metering import Rate, compute_charge
from protocol.quotes import Offer, OfferedGpu, QuoteRequest, check_request_fits, compute_rate, decode_offer

if TYPE_CHECKING:
    from node.wallet.job_spec import JobSpec
    from node.wallet.wallet import Wallet

_FILTER = re.compile(r"(gpu|vram|cores|memory|disk|weight|runtime|machine)\s*(>=|=)\s*([\w.+-]+)")


class PricedOffer(NamedTuple):
    """An offer that fits a job, and the most that the job could cost there."""

    offer: Offer
    rate: Rate
    amount_max: int
    runtime: bytes


def read_offers(wallet: Wallet) -> list[Offer]:
    """Every offer that is valid now; forged, damaged and stale ones are left out."""
    found = []
    for answer in wallet.client.get_offers():
        try:
            offer = decode_offer(wallet.charter, answer.encoded)
        except InvalidInput:
            continue
        if offer.valid_until >= wallet.now():
            found.append(offer)
    return sorted(found, key=lambda offer: (compute_hourly_charge(offer), offer.machine, offer.donor_key))


def compute_hourly_charge(offer: Offer) -> int:
    """Millicredits for an hour of one core, which is what small machines are compared by."""
    return compute_charge(3_600_000, Rate(offer.weight, 1, 1, 1 if offer.gpus else 0))


def matches(offer: Offer, text: str) -> bool:
    """Whether an offer meets all conditions of a text such as `cores>=4 memory>=16 runtime=python-ml`.

    `gpu` and `vram` (GB of a GPU's memory) speak of one GPU that must meet all of them. Raises: UserError when the
    text can't be understood.
    """
    rest = _FILTER.sub("", text).strip()
    if rest:
        raise UserError(f"{rest!r} is no condition: write them like 'cores>=4 memory>=16 runtime=python-ml'")
    conditions = [match.groups() for match in _FILTER.finditer(text)]
    of_gpus = [condition for condition in conditions if condition[0] in ("gpu", "vram")]
    of_machine = [condition for condition in conditions if condition not in of_gpus]
    gpus = [gpu for gpu in offer.gpus if all(_gpu_meets(gpu, *condition) for condition in of_gpus)]
    return bool(gpus or not of_gpus) and all(_meets(offer, *condition) for condition in of_machine)


def _gpu_meets(gpu: OfferedGpu, name: str, relation: str, wanted: str) -> bool:
    if name == "gpu":
        return wanted.lower() in gpu.name.lower()
    return _compare(name, float(gpu.memory_gb), relation, wanted)


def _meets(offer: Offer, name: str, relation: str, wanted: str) -> bool:
    if name in ("runtime", "machine"):
        names = {"runtime": tuple(runtime.name for runtime in offer.runtimes), "machine": (offer.machine,)}[name]
        return any(wanted.lower() in one.lower() for one in names)
    found = {
        "cores": float(offer.cores),
        "memory": offer.memory_bytes / 1e9,
        "disk": offer.disk_bytes / 1e9,
        "weight": float(offer.weight),
    }[name]
    return _compare(name, found, relation, wanted)


def _compare(name: str, found: float, relation: str, wanted: str) -> bool:
    try:
        number = float(wanted)
    except ValueError:
        raise UserError(f"{name}{relation}{wanted}: a number is needed") from None
    return found >= number if relation == ">=" else found == number


def price_offers(offers: list[Offer], spec: JobSpec) -> list[PricedOffer]:
    """The offers that can do the job, cheapest first. Raises: UserError that says why none can."""
    fitting: list[PricedOffer] = []
    reasons: list[str] = []
    for offer in offers:
        try:
            fitting.append(_price(offer, spec))
        except Rejected as rejection:
            reasons.append(rejection.detail)
        except UserError as error:
            reasons.append(str(error))
    if not fitting:
        if not offers:
            raise UserError("no donor offers a machine at the moment: try again later (`allmende offers`)")
        raise UserError(f"none of {len(offers)} offered machines can run this job: {'; '.join(reasons[:3])}")
    return sorted(fitting, key=lambda priced: (priced.amount_max, priced.offer.donor_key))


def _price(offer: Offer, spec: JobSpec) -> PricedOffer:
    runtime = b""
    if spec.runtime is not None:
        digests = {runtime.name: runtime.digest for runtime in offer.runtimes}
        if spec.runtime not in digests:
            names = ", ".join(digests) or "none"
            raise UserError(f"{offer.machine} does not have the runtime {spec.runtime} (it has: {names})")
        runtime = digests[spec.runtime]
    # Which of its GPUs a job gets is the donor's choice, so all must be of the kind.
    if spec.gpu_name and not all(spec.gpu_name.lower() in gpu.name.lower() for gpu in offer.gpus):
        raise UserError(f"{offer.machine} has GPUs of another kind than {spec.gpu_name}")
    request = make_request(spec, runtime)
    check_request_fits(offer, request)
    rate = compute_rate(offer, request)
    return PricedOffer(offer, rate, compute_charge(spec.wall_seconds * 1000, rate), runtime)


def make_request(spec: JobSpec, runtime: bytes) -> QuoteRequest:
    """The resources of a job as a request without keys: what the price depends on."""
    return QuoteRequest(
        account=b"",
        meter_key=b"",
        seal_key=b"",
        result_key=b"",
        cores=spec.cores,
        memory_bytes=spec.memory_bytes,
        disk_bytes=spec.disk_bytes,
        gpus=spec.gpus,
        is_online=0,
        wall_seconds=spec.wall_seconds,
        runtime=runtime,
        job_class=spec.job_class,
        mailbox_to_donor=b"",
        mailbox_to_wallet=b"",
        signature=b"",
    )
