"""What a second on each known GPU is worth, against one on the reference GPU: a charter's first rate table.

weight = round(1000 * cbrt(T/312 * B/2039 * M/80)): T dense FP16 tensor TFLOPS with FP32 accumulation, B memory
bandwidth in GB/s, M memory in GB, as the vendors' data sheets state them; the reference, A100-SXM4-80GB, is 1000.
The geometric mean lets no single figure that a vendor may flatter decide. A federation may bring its own table, and
the table is an upper bound only: the self-test of each machine measures what it does.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from node.errors import UserError
from protocol.charter import Rate
from protocol.limits import NAME_BYTES_MAX, RATES_MAX, WEIGHT_MAX

RATES_BYTES_MAX = 1 << 20


class Specification(NamedTuple):
    """Public figures of a GPU."""

    tensor_tflops: float
    """Dense FP16 matrix products that accumulate in FP32: what training does. GeForce cards halve it."""
    bandwidth_gb_per_second: float
    memory_gb: float


REFERENCE_DEVICE = "A100-SXM4-80GB"
REFERENCE = Specification(312, 2039, 80)

SPECIFICATIONS: dict[str, Specification] = {
    # Data centres: NVIDIA Blackwell, Hopper, Ada, Ampere, Turing, Volta, Pascal (which has no tensor cores).
    "B200": Specification(2250, 8000, 180),
    "H200": Specification(989.4, 4800, 141),
    "H200 NVL": Specification(835.5, 4800, 141),
    "H100 80GB HBM3": Specification(989.4, 3350, 80),
    "H100 PCIe": Specification(756.5, 2039, 80),
    "H100 NVL": Specification(835.5, 3938, 94),
    "L40S": Specification(362.1, 864, 48),
    "L40": Specification(181.1, 864, 48),
    "L4": Specification(121, 300, 24),
    REFERENCE_DEVICE: REFERENCE,
    "A100 80GB PCIe": Specification(312, 1935, 80),
    "A100-SXM4-40GB": Specification(312, 1555, 40),
    "A100-PCIE-40GB": Specification(312, 1555, 40),
    "A40": Specification(149.7, 696, 48),
    "A30": Specification(165, 933, 24),
    "A10": Specification(125, 600, 24),
    "Tesla T4": Specification(65, 320, 16),
    "Tesla V100-SXM2-32GB": Specification(125, 900, 32),
    "Tesla V100-SXM2-16GB": Specification(125, 900, 16),
    "Tesla V100-PCIE-32GB": Specification(112, 900, 32),
    "Tesla V100-PCIE-16GB": Specification(112, 900, 16),
    "Tesla P100-PCIE-16GB": Specification(18.7, 732, 16),
    # Workstations.
    "RTX PRO 6000 Blackwell Workstation Edition": Specification(503.8, 1792, 96),
    "RTX 6000 Ada Generation": Specification(364.2, 960, 48),
    "RTX A6000": Specification(154.8, 768, 48),
    "RTX A5000": Specification(111.1, 768, 24),
    "RTX A4000": Specification(76.7, 448, 16),
    "TITAN RTX": Specification(130.5, 672, 24),
    # Desktops.
    "GeForce RTX 5090": Specification(209.5, 1792, 32),
    "GeForce RTX 5080": Specification(112.6, 960, 16),
    "GeForce RTX 4090": Specification(165.2, 1008, 24),
    "GeForce RTX 4080": Specification(97.5, 717, 16),
    "GeForce RTX 4070 Ti": Specification(80.2, 504, 12),
    "GeForce RTX 4070": Specification(58.3, 504, 12),
    "GeForce RTX 4060 Ti": Specification(44.1, 288, 16),
    "GeForce RTX 4060": Specification(30.2, 272, 8),
    "GeForce RTX 3090 Ti": Specification(80, 1008, 24),
    "GeForce RTX 3090": Specification(71, 936, 24),
    "GeForce RTX 3080 Ti": Specification(68.2, 912, 12),
    "GeForce RTX 3080": Specification(59.5, 760, 10),
    "GeForce RTX 3070": Specification(40.6, 448, 8),
    "GeForce RTX 3060": Specification(25.6, 360, 12),
    "GeForce RTX 2080 Ti": Specification(53.8, 616, 11),
    # AMD; an MI250X shows itself as two devices, each with one half of this.
    "Instinct MI300X": Specification(1307.4, 5300, 192),
    "Instinct MI250X die": Specification(191.5, 1638, 64),
    "Instinct MI210": Specification(181, 1638, 64),
    "Instinct MI100": Specification(184.6, 1229, 32),
    "Radeon RX 7900 XTX": Specification(122.8, 960, 24),
}
"""Names as the vendors' drivers print them, without "NVIDIA" or "AMD"."""


def compute_weight(specification: Specification) -> int:
    """Thousandths of the reference GPU. At charter time only: ledgers hold the integers, never this arithmetic."""
    tflops, bandwidth, memory = (ours / reference for ours, reference in zip(specification, REFERENCE, strict=True))
    return max(1, round(1000 * math.cbrt(tflops * bandwidth * memory)))


def compute_default_rates() -> tuple[Rate, ...]:
    """The table for a charter, in its order."""
    return tuple(sorted(Rate(device, compute_weight(figures)) for device, figures in SPECIFICATIONS.items()))


def read_rates(path: Path) -> tuple[Rate, ...]:
    """A federation's own table: a JSON object of device names and weights. Raises: UserError."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(RATES_BYTES_MAX))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise UserError(f'{path} is no JSON; write it like {{"{REFERENCE_DEVICE}": 1000, "L4": 258}}') from None
    if not isinstance(document, dict) or len(document) > RATES_MAX:
        raise UserError(f"{path}: a rate table is one JSON object with at most {RATES_MAX} devices")
    for device, weight in document.items():
        if not 1 <= len(device.encode("utf-8", "surrogatepass")) <= NAME_BYTES_MAX or not device.isprintable():
            raise UserError(f"{path}: a device's name has 1 to {NAME_BYTES_MAX} bytes of plain text, not {device!r}")
        if type(weight) is not int or not 1 <= weight <= WEIGHT_MAX:
            raise UserError(f"{path}: the weight of {device} must be an integer from 1 to {WEIGHT_MAX}")
    return tuple(sorted(Rate(device, weight) for device, weight in document.items()))
