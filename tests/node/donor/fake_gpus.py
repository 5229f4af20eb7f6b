"""Cards that are nothing but lines of a text: a stand-in for NVIDIA's library, compiled here, that reads them."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest

from node.files import write_atomically

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY_NAME = "libnvidia-ml.so.1"
A100_BYTES = 80 * 2**30


class FakeGpus:
    """What the library says from now on; each change holds at once, also for other processes."""

    def __init__(self, path: Path, library: Path) -> None:
        self.library = library
        self.path = path
        self._values: dict[str, Any] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to see these cards."""
        return {"FAKE_NVML": str(self.path), "LD_LIBRARY_PATH": str(self.library.parent)}

    def set_up(self, count: int, **values: Any) -> None:
        """So many sound A100s that do nothing, with these values instead where given."""
        usual = {"name": "NVIDIA A100-SXM4-80GB", "memory": A100_BYTES, "used": 0, "utilisation": 0}
        usual |= {"energy": 0, "temperature": 35, "uncorrected": 0, "corrected": 0, "remapped": 0, "mig": 0}
        self._values = {"count": count}
        for number in range(count):
            self.change(number, **{**usual, "uuid": f"GPU-{number}", "minor": number, **values})

    def change(self, number: int, **values: Any) -> None:
        """Give one card other values; None takes the line away."""
        self._values.update({f"{number}.{name}": value for name, value in values.items()})
        self._write()

    def fail(self, call: str, code: int | None, number: int | None = None) -> None:
        """Let a call give an error, on all cards or on one; None mends it."""
        self._values[f"fail.{call}" if number is None else f"{number}.fail.{call}"] = code
        self._write()

    def remove(self) -> None:
        """No driver."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        lines = [f"{name} {value}\n" for name, value in self._values.items() if value is not None]
        write_atomically(self.path, "".join(lines).encode())


@pytest.fixture(scope="session", autouse=True)
def fake_nvml(tmp_path_factory) -> Path:
    """The stand-in, loaded before anything could load this machine's own library: tests never see real cards.

    A library that is loaded is found again by its name, so the binding takes this one.
    """
    library: Path = tmp_path_factory.mktemp("nvml") / LIBRARY_NAME
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{LIBRARY_NAME}"]
    subprocess.run(["gcc", *flags, "-o", library, SOURCE], check=True)
    ctypes.CDLL(str(library))
    return library


@pytest.fixture
def fake_gpus(tmp_path, fake_nvml, monkeypatch) -> FakeGpus:
    """No driver at first; `set_up` brings cards."""
    gpus = FakeGpus(tmp_path / "fake-nvml", fake_nvml)
    monkeypatch.setenv("FAKE_NVML", str(gpus.path))
    return gpus
