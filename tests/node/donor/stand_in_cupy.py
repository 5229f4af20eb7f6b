"""What the self-test calls of cupy, over numpy: becomes the module `cupy` of a runtime, and behaves as CARDS says.

CARDS gives the memory of each card and how it misbehaves: `slow` takes long, `wrong` errs in one entry of a product,
`forgetful` changes one word that it keeps.
"""

import contextlib
import importlib
import json
import os
import pathlib
import threading
import time
from types import SimpleNamespace
from typing import Any

numpy: Any = importlib.import_module("numpy")  # which only the runtime has
asarray, bitwise_xor, ones, uint64 = numpy.asarray, numpy.bitwise_xor, numpy.ones, numpy.uint64

CARDS = json.loads(pathlib.Path("/runtime/cards.json").read_text())

_current = threading.local()
_used: dict[int, int] = {}


class Device(contextlib.AbstractContextManager):
    """One card, as the current thread's."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        _current.number = self.number

    def __exit__(self, *failure):
        del _current.number


cuda = SimpleNamespace(Device=Device, runtime=SimpleNamespace(deviceSynchronize=lambda: None))


def _get_card():
    return CARDS[os.environ["CUDA_VISIBLE_DEVICES"].split(",")[_current.number]]


class Array(numpy.ndarray):  # type: ignore[misc]  # numpy's types are not here
    """A block of a card's memory: what is made from it by `^` is kept there."""

    def __xor__(self, key):
        number = _current.number
        _used[number] = _used.get(number, 0) + self.nbytes
        if _used[number] > _get_card()["memory"]:
            raise MemoryError("out of memory")
        kept = numpy.ndarray.__xor__(self, key)
        if "forgetful" in _get_card():
            kept[-1] ^= uint64(1)
        return kept


def arange(count, dtype):
    return numpy.arange(count, dtype=dtype).view(Array)


def empty_like(array):
    return numpy.empty_like(array, subok=False)


def matmul(left, right, out):
    numpy.matmul(left, right, out=out)
    if "wrong" in _get_card():
        out[-1, -1] += 1
    if "slow" in _get_card():
        time.sleep(0.05)


def copyto(target, source):
    numpy.copyto(target, source)
    if "slow" in _get_card():
        time.sleep(0.05)


def asnumpy(array):
    return array


def get_default_memory_pool():
    return SimpleNamespace(free_all_blocks=lambda: _used.pop(_current.number, None))
