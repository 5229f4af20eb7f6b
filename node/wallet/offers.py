"""Which machines donors lend now, and what is known of those donors.

An offer is believed only with its donor's signature; that a member of the federation vouches for the donor is checked
by all members when the money is put aside. Who that member is the node says, and it decides nothing but the order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from node.addresses import Kind, encode_address
from node.errors import UserError
from node.wallet.matching import UNKNOWN, DonorScore, KnownOffer
from protocol.errors import InvalidInput
from protocol.metering import Rate, compute_charge
from protocol.quotes import Offer, OfferedGpu, decode_offer

if TYPE_CHECKING:
    from node import api
    from node.wallet.wallet import Wallet

ADDRESS_START = 12
"""So many characters of a donor's address name it, too."""

_FILTER = re.compile(r"(gpu|vram|cores|memory|disk|weight|runtime|machine)\s*(>=|=)\s*([\w.+-]+)")


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


def ask_about_donors(wallet: Wallet, offers: Iterable[Offer]) -> list[KnownOffer]:
    """The offers with what the node knows of their donors: one question for each donor."""
    accounts: dict[bytes, api.Account] = {}
    found = []
    for offer in offers:
        if offer.donor_key not in accounts:
            donor = encode_address(Kind.ACCOUNT, offer.compute_donor(wallet.federation))
            accounts[offer.donor_key] = wallet.client.get_account(donor)
        donor_account = accounts[offer.donor_key]
        found.append(KnownOffer(offer, _find_member(donor_account, offer), _find_reliability(donor_account)))
    return found


def _find_reliability(donor: api.Account) -> DonorScore:
    """As the node computes it from the ledger; of somebody who never lent a machine nothing is known."""
    known = donor.reliability
    return DonorScore(known.score, known.settled + known.reclaimed) if known else UNKNOWN


def _find_member(donor: api.Account, offer: Offer) -> int:
    record = encode_address(Kind.RECORD, offer.sponsor)
    return next((one.member for one in donor.sponsorships if one.record == record), 0)


def find_own_members(account: api.Account) -> frozenset[int]:
    """The members that have enrolled the payer, and still do."""
    return frozenset(one.member for one in account.enrolments if not 0 < one.until_epoch < account.epoch)


def get_member_name(wallet: Wallet, number: int) -> str:
    """What the charter calls the member."""
    names = {member.number: member.name for member in wallet.charter.fields.members}
    return names.get(number, "an unknown member")


def is_named(wallet: Wallet, offer: Offer, who: str) -> bool:
    """Whether `who` names the offer's donor: its address, the start of it, or its machine."""
    address = encode_address(Kind.ACCOUNT, offer.compute_donor(wallet.federation))
    return who == offer.machine or address == who or (len(who) >= ADDRESS_START and address.startswith(who))


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
