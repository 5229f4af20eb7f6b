"""The command `offers`: machines that donors lend now, and their price."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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

    Example: allmende offers 'gpu=A100 vram>=40 cores>=4 memory>=16 runtime=python-ml'
    """
    from node.addresses import Kind, encode_address
    from node.wallet.offers import compute_hourly_charge, matches, read_offers
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        known = read_offers(wallet)
        offers = [offer for offer in known if matches(offer, condition)]
        document = {
            "offers": [
                {
                    "donor": encode_address(Kind.ACCOUNT, offer.compute_donor(wallet.federation)),
                    "machine": offer.machine,
                    "cores": offer.cores,
                    "memory_bytes": offer.memory_bytes,
                    "disk_bytes": offer.disk_bytes,
                    "gpus": list(offer.gpus),
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
        emit(document, _iterate_lines(offers, len(known)), as_json)


def _iterate_lines(offers: list[Offer], known: int) -> Iterator[str]:
    from node.wallet.offers import compute_hourly_charge
    from protocol.credits import format_credits

    if not offers:
        yield f"None of {known} offers fits." if known else "No machine is offered at the moment."
        return
    yield f"{'MACHINE':<24} {'CORES':>5} {'MEMORY':>9} {'GPUS':<12} {'WEIGHT':>6} {'CREDITS/CORE-HOUR':>17}  RUNTIMES"
    for offer in offers:
        yield (
            f"{offer.machine[:24]:<24} {offer.cores:>5} {offer.memory_bytes / 1e9:>6.1f} GB "
            f"{(', '.join(offer.gpus) or '-')[:12]:<12} {offer.weight:>6} "
            f"{format_credits(compute_hourly_charge(offer)):>17}  "
            f"{', '.join(runtime.name for runtime in offer.runtimes) or '-'}"
        )
