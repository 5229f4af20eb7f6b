"""Looks a lent machine over: what it has, how its GPUs are, what of it is lent, and what to do where something fails.

Nothing is changed, and nothing is measured: the self-test does that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from node.donor.executors.devices import DEVICES, DevicePool
from node.donor.executors.executor import JobNotStarted
from node.donor.executors.sandbox import find_missing_tools
from node.donor.gpus import SurveyedGpu, is_descendant
from node.donor.hardware import Hardware, find_hardware
from node.donor.settings import DonorHome, Score, Settings
from node.errors import UserError
from node.files import read_lock_holder

SELFTEST = "run `allmende donor selftest`"


class Check(msgspec.Struct, frozen=True):
    """One finding. After a failed one jobs can't run as the settings promise; a warning is for the owner to weigh."""

    name: str
    state: Literal["ok", "failed", "warning"]
    actual: str
    remedy: str = ""


def examine(home: DonorHome, devices: Path = DEVICES) -> Iterator[Check]:
    """All checks, also before `donor setup`; `devices` is where device files lie."""
    missing = find_missing_tools()
    names = " ".join(missing)
    if missing:
        yield Check("sandbox", "failed", f"missing: {names}", f"run apt-get install {names}")
    else:
        yield Check("sandbox", "ok", "all its programs are here")
    settings = home.load_settings() if home.settings_path.exists() else None
    score = home.load_score()
    agent = read_lock_holder(home.directory)
    hardware = find_hardware(home.directory, lambda process: agent is not None and is_descendant(process, {agent}))
    yield _check_machine(hardware, home, settings)
    yield from _check_score(settings, score)
    found = hardware.gpus
    if not found and not (settings and settings.gpus):
        yield Check("GPUs", "ok", "none, or no NVIDIA driver")
    for surveyed in found:
        yield _check_gpu(surveyed, settings, score)
    if settings is not None:
        yield from _check_lent(found, settings, devices)


def _check_machine(hardware: Hardware, home: DonorHome, settings: Settings | None) -> Check:
    free = f"{hardware.disk_free_bytes / 1e9:.1f} GB of disk free"
    has = f"{hardware.cores} cores, {hardware.memory_bytes / 1e9:.1f} GB, {free}"
    if settings is None:
        return Check("machine", "warning", f"{has}; nothing is lent", "run `allmende donor setup`")
    lent = f"lent {settings.cores}, {settings.memory_bytes / 1e9:.1f} GB, {settings.disk_bytes / 1e9:.1f} GB"
    is_there = settings.cores <= hardware.cores and settings.memory_bytes <= hardware.memory_bytes
    if is_there and settings.disk_bytes <= hardware.disk_free_bytes:
        return Check("machine", "ok", f"{has}; {lent}")
    return Check("machine", "failed", f"{has}; {lent}", f"lend no more than there is, in {home.settings_path}")


def _check_score(settings: Settings | None, score: Score | None) -> Iterator[Check]:
    if score is not None:
        hours = max(0, time.time() - score.measured_at_seconds) / 3600
        yield Check("self-test", "ok", f"weight {score.weight}, {hours:.0f} hours ago")
    elif settings is not None:
        yield Check("self-test", "failed", "never made", SELFTEST)


def _check_gpu(surveyed: SurveyedGpu, settings: Settings | None, score: Score | None) -> Check:
    """How one card is; that of a card that isn't lent is the owner's matter."""
    gpu, health = surveyed.gpu, surveyed.health
    is_lent = settings is not None and gpu.uuid in settings.gpus
    measured = next((one for one in score.gpus if one.uuid == gpu.uuid), None) if score else None
    parts = ["lent" if is_lent else "not lent"]
    if measured is not None:
        parts.append(f"weight {measured.weight}")
    parts.append(f"{gpu.memory_used_bytes / 1e9:.1f} of {gpu.memory_bytes / 1e9:.1f} GB used")
    if health.temperature_celsius is not None:
        parts.append(f"{health.temperature_celsius} °C")
    for number, what in ((health.corrected_errors, "mended memory errors"), (health.remapped_rows, "replaced rows")):
        if number:
            parts.append(f"{number} {what}")
    parts += [f"slowed down: {reason}" for reason in health.slowdowns]
    name = f"{gpu.name} {gpu.uuid}"
    if surveyed.obstacle:
        state: Literal["failed", "warning"] = "failed" if is_lent else "warning"
        return Check(name, state, f"{surveyed.obstacle}; {', '.join(parts)}", "take it out of gpus in donor.toml")
    if is_lent and (measured is None or measured.fault):
        fault = "it was never measured" if measured is None else f"the self-test found: {measured.fault}"
        return Check(name, "failed", f"{fault}; {', '.join(parts)}", SELFTEST)
    if is_lent and surveyed.foreign_processes:
        numbers = ", ".join(map(str, sorted(surveyed.foreign_processes)))
        parts.append(f"others compute on it (processes {numbers})")
        return Check(name, "warning", ", ".join(parts), "no job gets it before they end")
    return Check(name, "ok", ", ".join(parts))


def _check_lent(found: tuple[SurveyedGpu, ...], settings: Settings, devices: Path) -> Iterator[Check]:
    """Lent cards that aren't there, and whether jobs could open those that are."""
    there = {surveyed.gpu.uuid: surveyed.gpu for surveyed in found}
    for uuid in settings.gpus:
        if uuid not in there:
            yield Check(uuid, "failed", "lent, and not there", "take it out of gpus in donor.toml, or reset the card")
    try:
        files = DevicePool(None, devices=devices).build_files([there[uuid] for uuid in settings.gpus if uuid in there])
    except JobNotStarted as error:
        yield Check("device files", "failed", str(error), "jobs can't use a card without")
    else:
        if files.needed:
            yield Check("device files", "ok", ", ".join(path.name for path in files.needed))


def choose_lendable_gpus(found: tuple[SurveyedGpu, ...], count: int | None) -> list[str]:
    """UUIDs of so many cards that can be lent, or of all. Raises: UserError when there are fewer."""
    sound = [surveyed.gpu.uuid for surveyed in found if not surveyed.obstacle]
    if count is None:
        return sound
    if count > len(sound):
        why = "; ".join(f"{one.gpu.uuid}: {one.obstacle}" for one in found if one.obstacle)
        raise UserError(f"this machine has {len(sound)} GPUs that can be lent, not {count}{f' ({why})' if why else ''}")
    return sound[:count]
