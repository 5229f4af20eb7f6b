"""The program of the self-test: runs as a job inside the sandbox, with nothing of ours but its own text.

It sees devices through one array interface, which cupy offers for GPUs and numpy for processors. All devices are
measured at once, as they may be used at once: one that is there twice under two names, or starves beside others,
shows. The last line that it writes is the result, in JSON.

1. memory: fill what a device claims with words that depend on place and block, then read all of it again
2. results: a product of matrices of -1, 0 and 1 is exact in any of the number formats, so a single wrong entry shows
   when both sides are multiplied with a random vector of -1 and 1, here, on the processor
3. speed: the shortest time of a product and of a copy, of as many as fit into the time
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

numpy: Any = importlib.import_module("numpy")

ODD = 0x9E3779B97F4A7C15
"""Multiplying with it spreads the numbers of neighbouring places over all bits."""
ROWS_AT_ONCE = 256


class Fault(Exception):
    """A device does not do what it claims."""


class Device:
    """One device under test. `fault` stays empty as long as it does what it claims."""

    def __init__(self, arrays: Any, number: int, name: str, claimed_bytes: int, task: dict[str, Any]) -> None:
        self.name = name
        self.fault = ""
        self.verified_bytes = 0
        self.gigaflops = 0.0
        self.bandwidth_gb_per_second = 0.0
        self._arrays = arrays
        self._number = number
        self._claimed_bytes = claimed_bytes
        self._task = task
        self._blocks: list[tuple[Any, Any]] = []

    def do(self, step: Callable[[], None]) -> None:
        """Take a step on this device; whatever goes wrong there is its fault."""
        if self.fault:
            return
        arrays = self._arrays
        with arrays.cuda.Device(self._number) if hasattr(arrays, "cuda") else nullcontext():
            try:
                step()
            except Exception as error:
                self.fault = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"[:200]
                self._blocks.clear()

    def fill(self) -> None:
        """Store words everywhere, until the claim is met or nothing more fits."""
        words = self._task["block_bytes"] // 8
        keys = numpy.random.default_rng(self._task["seed"] + self._number)
        try:
            self._base = self._arrays.arange(words, dtype="uint64") * self._arrays.uint64(ODD)
            self._scratch = self._arrays.empty_like(self._base)
            while (len(self._blocks) + 3) * self._task["block_bytes"] <= self._claimed_bytes:
                key = self._arrays.uint64(keys.integers(2**63))
                self._blocks.append((self._base ^ key, key))
        except MemoryError:
            del self._blocks[-2:]  # reading needs some room, too
        self._wait()

    def verify(self) -> None:
        """Read all of it, then let go."""
        for block, key in self._blocks:
            self._arrays.bitwise_xor(block, self._base, out=self._scratch)
            if not bool((self._scratch == key).all()):
                raise Fault("its memory gives back other words than were stored")
        self.verified_bytes = (len(self._blocks) + 2) * self._task["block_bytes"]
        self._blocks.clear()
        del self._base, self._scratch
        if hasattr(self._arrays, "get_default_memory_pool"):
            self._arrays.get_default_memory_pool().free_all_blocks()

    def multiply(self, left: Any, right: Any) -> None:
        """Time the product of two matrices, then check the last one."""
        arrays, size = self._arrays, len(left)
        here_left, here_right = arrays.asarray(left), arrays.asarray(right)
        product = arrays.empty_like(here_left)
        seconds = self._find_best(lambda: arrays.matmul(here_left, here_right, out=product), "product_seconds")
        self.gigaflops = 2 * size**3 / seconds / 1e9
        result = arrays.asnumpy(product) if hasattr(arrays, "asnumpy") else product
        vector = numpy.random.default_rng(self._task["seed"] + 1).choice([-1.0, 1.0], size)
        if not numpy.array_equal(apply(result, vector), apply(left, apply(right, vector))):
            raise Fault("it computes wrongly")

    def copy(self) -> None:
        """Time a copy from memory to memory: each byte is read once and written once."""
        source = self._arrays.ones(self._task["copy_bytes"] // 8, dtype="float64")
        target = self._arrays.empty_like(source)
        seconds = self._find_best(lambda: self._arrays.copyto(target, source), "copy_seconds")
        self.bandwidth_gb_per_second = 2 * source.nbytes / seconds / 1e9

    def _find_best(self, work: Callable[[], Any], limit: str) -> float:
        """The shortest time of one call: what else the machine did meanwhile counts least."""
        shortest = float("inf")
        work()
        self._wait()
        end = time.perf_counter() + self._task[limit]
        while time.perf_counter() < end or shortest == float("inf"):
            start = time.perf_counter()
            work()
            self._wait()
            shortest = min(shortest, time.perf_counter() - start)
        return shortest

    def _wait(self) -> None:
        if hasattr(self._arrays, "cuda"):
            self._arrays.cuda.runtime.deviceSynchronize()


def apply(matrix: Any, vector: Any) -> Any:
    """Matrix times vector in whole numbers (exact in float64), some rows at a time to spare memory."""
    starts = range(0, len(matrix), ROWS_AT_ONCE)
    parts = [matrix[start : start + ROWS_AT_ONCE].astype("float64") @ vector for start in starts]
    return numpy.concatenate(parts)


def run(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure all devices of a task side by side."""
    arrays: Any = importlib.import_module(task["arrays"])
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "processor").split(",")
    devices = [Device(arrays, number, name, task["claims"][name], task) for number, name in enumerate(names)]
    random = numpy.random.default_rng(task["seed"])
    size = task["size"]
    left, right = (random.integers(-1, 2, (size, size), dtype="int8").astype(task["number_format"]) for _ in range(2))
    steps: list[Callable[[Device], Callable[[], None]]] = [
        lambda device: device.fill,
        lambda device: device.verify,
        lambda device: lambda: device.multiply(left, right),
        lambda device: device.copy,
    ]
    with ThreadPoolExecutor(len(devices)) as threads:
        for step in steps:
            list(threads.map(lambda device, step=step: device.do(step(device)), devices))
    return [
        {
            "name": device.name,
            "fault": device.fault,
            "verified_bytes": device.verified_bytes,
            "gigaflops": device.gigaflops,
            "bandwidth_gb_per_second": device.bandwidth_gb_per_second,
        }
        for device in devices
    ]


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(run(json.loads(os.environ["SELFTEST"]))) + "\n")
