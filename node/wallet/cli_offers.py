"""The command `offers`: machines that donors lend now, and their price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.terminal import emit, home_option, json_option
from node.wallet.options import node_option

if TYPE_CHECKING:
    from protocol.quotes import Offer


@click.command()
@click.argument("condition", default="")
@home_option
@node_option
@json_option
def command(condition: str, home: Path, node_url: str | None, as_json: bool) -> None:
    """List machines that donors lend now, cheapest first.

    RELIABLE is 1 to 999 by how the donor's jobs ended, as the node counts it: 500 for who is new.

    Example: allmende offers 'gpu=A100 vram>=40 cores>=4 memory>=16 runtime=python-ml'
    """
    from msgspec import to_builtins

    from node.addresses import Kind, encode_address
    from node.wallet.offers import compute_hourly_charge, matches, read_offers
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        known = read_offers(wallet)
        reliable = {donor.address: donor.reliability for donor in wallet.client.get_donors()}
        offers = [offer for offer in known if matches(offer, condition)]
        document: dict[str, list[dict[str, Any]]] = {
            "offers": [
                {
                    "donor": (donor := encode_address(Kind.ACCOUNT, offer.compute_donor(wallet.federation))),
                    "reliability": to_builtins(reliable[donor]) if donor in reliable else None,
                    "machine": offer.machine,
                    "cores": offer.cores,
                    "memory_bytes": offer.memory_bytes,
                    "disk_bytes": offer.disk_bytes,
                    "gpus": [gpu._asdict() for gpu in offer.gpus],
                    "weight": offer.weight,
                    "runtimes": [runtime.name for runtime in offer.runtimes],
                    "job_classes": list(offer.job_classes),
                    "hosts": list(offer.hosts),
                    "wall_seconds_max": offer.wall_seconds_max,
                    "core_hour_millicredits": compute_hourly_charge(offer),
                    "node": offer.node_url,
                    "valid_until": offer.valid_until,
                }
                for offer in offers
            ]
        }
        scores = [(offer["reliability"] or {}).get("score") for offer in document["offers"]]
        emit(document, _iterate_lines(offers, scores, len(known)), as_json)


def _iterate_lines(offers: list[Offer], scores: list[int | None], known: int) -> Iterator[str]:
    from node.wallet.offers import compute_hourly_charge
    from protocol.credits import format_credits

    if not offers:
        yield f"None of {known} offers fits." if known else "No machine is offered at the moment."
        return
    header = f"{'MACHINE':<24} {'CORES':>5} {'MEMORY':>9} {'GPUS':<24} {'WEIGHT':>6} {'CREDITS/CORE-HOUR':>17} "
    yield header + f"{'RELIABLE':>8}  RUNTIMES"
    for offer, score in zip(offers, scores, strict=True):
        yield (
            f"{offer.machine[:24]:<24} {offer.cores:>5} {offer.memory_bytes / 1e9:>6.1f} GB "
            f"{_describe_gpus(offer)[:24]:<24} {offer.weight:>6} "
            f"{format_credits(compute_hourly_charge(offer)):>17} {score or '-':>8}  "
            f"{', '.join(runtime.name for runtime in offer.runtimes) or '-'}"
        )


def _describe_gpus(offer: Offer) -> str:
    counts = Counter(offer.gpus)
    return ", ".join(f"{count} {gpu.name} {gpu.memory_gb} GB" for gpu, count in counts.items()) or "-"
