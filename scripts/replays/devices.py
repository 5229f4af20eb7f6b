"""How fast the GPU models of the traces are, in the federation's own measure.

Figures are the makers' data sheets: dense tensor throughput at FP16 (the P100 has no tensor cores: its plain FP16
figure), memory bandwidth, memory. Weights follow from them by the rule that the product weighs machines with; a real
donor is weighed by its self-test, which finds less.
"""

from __future__ import annotations

from typing import NamedTuple

from node.donor.calibrate import compute_weight
from node.errors import UserError


class Device(NamedTuple):
    """One GPU, as its maker describes it."""

    name: str
    """What a donor's offer calls it."""
    tflops: float
    bandwidth_gb_per_second: float
    memory_gb: int

    @property
    def weight(self) -> int:
        """Thousandths of the reference GPU."""
        return compute_weight(self.tflops, self.bandwidth_gb_per_second, self.memory_gb)


DEVICES = {
    # NVIDIA Tesla P100 PCIe data sheet (2016), 16 GB
    "P100": Device("Tesla P100-PCIE-16GB", 18.7, 732, 16),
    # NVIDIA T4 data sheet (2018)
    "T4": Device("Tesla T4-16GB", 65, 320, 16),
    # NVIDIA V100 data sheet (2020), SXM2
    "V100M16": Device("Tesla V100-SXM2-16GB", 125, 900, 16),
    "V100M32": Device("Tesla V100-SXM2-32GB", 125, 900, 32),
    # NVIDIA A10 data sheet (2021)
    "A10": Device("NVIDIA A10-24GB", 125, 600, 24),
    # The Alibaba trace hides the names of these two. Assumed: G2 is like an A10, G3 like the best that it names.
    "G2": Device("G2 (taken for an A10-24GB)", 125, 600, 24),
    "G3": Device("G3 (taken for a V100-SXM2-32GB)", 125, 900, 32),
}


def find_device(model: str) -> Device:
    """The device that a trace means. Raises: UserError for one that nobody weighed."""
    try:
        return DEVICES[model]
    except KeyError:
        raise UserError(f"the GPU model {model!r} has no weight here; known are {', '.join(sorted(DEVICES))}") from None
