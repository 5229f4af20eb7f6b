"""What GPUs this machine has, and how they are: read from the management library that comes with NVIDIA's driver.

The library says less on some cards than on others, and nothing where no driver runs. So a figure that it does not
give is None, a card that it can't speak to any more is a card with a fault, and a machine without driver has no GPUs:
none of these is an error of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_Value = TypeVar("_Value")

_SLOWDOWNS = (
    ("nvmlClocksEventReasonSwPowerCap", "power limit"),
    ("nvmlClocksThrottleReasonHwSlowdown", "slowdown by the hardware"),
    ("nvmlClocksEventReasonSwThermalSlowdown", "heat (driver)"),
    ("nvmlClocksThrottleReasonHwThermalSlowdown", "heat (hardware)"),
    ("nvmlClocksThrottleReasonHwPowerBrakeSlowdown", "power brake of the machine"),
)
"""Reasons to run slower than set. Idleness and clocks that somebody chose are none."""
EVENTS_MAX = 64
"""Critical errors that are read at a time: a card that dies reports many."""


class Gpu(NamedTuple):
    """One card, as its driver describes it: a claim, which the self-test checks."""

    name: str
    """As in a charter's rate table: without the vendor."""
    uuid: str
    minor_number: int
    """N of the device file /dev/nvidiaN."""
    memory_bytes: int
    memory_used_bytes: int
    is_partitioned: bool
    """Split into instances (MIG). Those are not lent: a job would be given, and pay for, the whole card."""


class Health(NamedTuple):
    """Signs of damage or strain. None: this card does not say."""

    temperature_celsius: int | None
    uncorrected_errors: int | None
    """Memory errors since the driver was loaded that the card could not mend: results may be wrong."""
    corrected_errors: int | None
    remapped_rows: int | None
    """Rows of memory that the card replaced for good after errors that it could not mend; older cards retire pages."""
    slowdowns: tuple[str, ...]
    """Why it runs slower than it could, right now. A strain, no fault: the self-test measures what remains."""
    faults: tuple[str, ...]
    """Why nothing may be computed on it, in words; none for a sound card."""


class Activity(NamedTuple):
    """What a card does at this moment. None: it does not say."""

    utilisation_percent: int | None
    """Share of the last moments in which anything computed."""
    energy_millijoules: int | None
    """Taken since the driver was loaded."""


class SurveyedGpu(NamedTuple):
    """A card with all that decides whether it can be lent."""

    gpu: Gpu
    health: Health
    foreign_processes: frozenset[int]
    """Processes that compute on it and are not of our jobs: the owner, or somebody else, uses it."""

    @property
    def obstacle(self) -> str:
        """Why it can't be lent for the time being, in words; empty when it can."""
        if self.health.faults:
            return ", ".join(self.health.faults)
        return "it is split into instances (MIG), which are not lent" if self.gpu.is_partitioned else ""


class GpuDriver:
    """The management library, opened. Calls take milliseconds and block; any thread may make them."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles: dict[str, Any] = {}
        self._critical: dict[str, int] = {}
        self._events: Any = None

    @classmethod
    def open(cls) -> GpuDriver | None:
        """None on a machine without a working NVIDIA driver."""
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        driver = cls(pynvml)
        driver._listen()
        return driver

    def close(self) -> None:
        """Lets go of the library; this object is of no more use."""
        if self._events is not None:
            self._ask(self._library.nvmlEventSetFree, self._events)
        self._ask(self._library.nvmlShutdown)

    def list_gpus(self) -> tuple[Gpu, ...]:
        """All cards that answer, by the number of their device file."""
        library, found = self._library, []
        for index in range(self._ask(library.nvmlDeviceGetCount) or 0):
            handle = self._ask(library.nvmlDeviceGetHandleByIndex, index)
            if handle is not None and (gpu := self._describe(handle)) is not None:
                self._handles[gpu.uuid] = handle
                found.append(gpu)
        return tuple(sorted(found, key=lambda gpu: gpu.minor_number))

    def read_health(self, uuid: str) -> Health:
        """How the card is. One that was never listed, or that answers no more, has a fault."""
        library, handle = self._library, self._handles.get(uuid)
        if handle is None:
            return Health(None, None, None, None, (), ("it is not there",))
        kinds = library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_MEMORY_ERROR_TYPE_CORRECTED
        uncorrected, corrected = (
            self._ask(library.nvmlDeviceGetTotalEccErrors, handle, kind, library.NVML_VOLATILE_ECC) for kind in kinds
        )
        rows = self._ask(library.nvmlDeviceGetRemappedRows, handle)
        return Health(
            self._ask(library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU),
            uncorrected,
            corrected,
            rows[1] if rows else None,
            self._find_slowdowns(handle),
            self._find_faults(uuid, handle, uncorrected, rows),
        )

    def read_activity(self, uuid: str) -> Activity:
        """What it does now."""
        library, handle = self._library, self._handles.get(uuid)
        if handle is None:
            return Activity(None, None)
        utilisation = self._ask(library.nvmlDeviceGetUtilizationRates, handle)
        return Activity(
            None if utilisation is None else int(utilisation.gpu),
            self._ask(library.nvmlDeviceGetTotalEnergyConsumption, handle),
        )

    def survey(self, gpu: Gpu, is_ours: Callable[[int], bool]) -> SurveyedGpu:
        """A card that was listed, with its health and with who else is at work on it."""
        foreign = frozenset(process for process in self.find_processes(gpu.uuid) if not is_ours(process))
        return SurveyedGpu(gpu, self.read_health(gpu.uuid), foreign)

    def find_processes(self, uuid: str) -> frozenset[int]:
        """Process ids that compute on the card, whoever they belong to. A desktop's windows do not count."""
        handle = self._handles.get(uuid)
        running = handle and self._ask(self._library.nvmlDeviceGetComputeRunningProcesses, handle)
        return frozenset(int(process.pid) for process in running or ())

    def _describe(self, handle: Any) -> Gpu | None:
        library = self._library
        name, uuid, minor_number, memory = (
            self._ask(call, handle)
            for call in (
                library.nvmlDeviceGetName,
                library.nvmlDeviceGetUUID,
                library.nvmlDeviceGetMinorNumber,
                library.nvmlDeviceGetMemoryInfo,
            )
        )
        if name is None or uuid is None or minor_number is None or memory is None:
            return None
        mig = self._ask(library.nvmlDeviceGetMigMode, handle)
        is_partitioned = bool(mig and mig[0] == library.NVML_DEVICE_MIG_ENABLE)
        return Gpu(
            name.removeprefix("NVIDIA "), uuid, minor_number, int(memory.total), int(memory.used), is_partitioned
        )

    def _find_slowdowns(self, handle: Any) -> tuple[str, ...]:
        bits = self._ask(self._library.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        return tuple(text for name, text in _SLOWDOWNS if bits & getattr(self._library, name))

    def _find_faults(self, uuid: str, handle: Any, uncorrected: int | None, rows: Any) -> tuple[str, ...]:
        library, faults = self._library, []
        lost = library.NVML_ERROR_GPU_IS_LOST, library.NVML_ERROR_RESET_REQUIRED
        try:
            library.nvmlDeviceGetMemoryInfo(handle)
        except library.NVMLError as error:
            faults.append("it has fallen off the bus" if error.value in lost else f"it does not answer ({error})")
        self._read_events()
        if number := self._critical.get(uuid):
            faults.append(f"the driver reported the critical error Xid {number}")
        if uncorrected:
            faults.append(f"{uncorrected} memory errors that it could not mend")
        if rows and rows[3]:
            faults.append("it could not replace a bad row of memory")
        if (rows and rows[2]) or self._ask(library.nvmlDeviceGetRetiredPagesPendingStatus, handle):
            faults.append("it replaces bad memory at its next reset: reset it")
        return tuple(faults)

    def _listen(self) -> None:
        """Asks for news of critical errors (Xid); cards that offer none go without."""
        library = self._library
        self._events = self._ask(library.nvmlEventSetCreate)
        if self._events is None:
            return
        self.list_gpus()
        for handle in self._handles.values():
            self._ask(library.nvmlDeviceRegisterEvents, handle, library.nvmlEventTypeXidCriticalError, self._events)

    def _read_events(self) -> None:
        if self._events is None:
            return
        for _ in range(EVENTS_MAX):
            event = self._ask(self._library.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            uuid = self._ask(self._library.nvmlDeviceGetUUID, event.device)
            if uuid is not None and event.eventData not in _FAULTS_OF_PROGRAMS:
                self._critical[uuid] = int(event.eventData)

    def _ask(self, call: Callable[..., _Value], *arguments: Any) -> _Value | None:
        """The answer, or None when this card, driver or library does not give it."""
        try:
            return call(*arguments)
        except self._library.NVMLError:
            return None


_FAULTS_OF_PROGRAMS = frozenset({13, 31, 43, 45, 68, 69})
"""Xid numbers by which NVIDIA's list tells of a program's own mistake, such as a wrong address: the card is sound."""


def survey_gpus(is_ours: Callable[[int], bool] = lambda process: False) -> tuple[SurveyedGpu, ...]:
    """All cards of this machine and how they are; none without a driver."""
    driver = GpuDriver.open()
    if driver is None:
        return ()
    try:
        return tuple(driver.survey(gpu, is_ours) for gpu in driver.list_gpus())
    finally:
        driver.close()


def is_descendant(process: int, ancestors: Collection[int], processes: Path = Path("/proc")) -> bool:
    """Whether a process, or one of its parents, is among the ancestors: how a job's processes are told from others."""
    while process > 1:
        if process in ancestors:
            return True
        try:
            # The name stands in parentheses and may hold anything; state and parent follow the last of them.
            process = int((processes / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
    return False
