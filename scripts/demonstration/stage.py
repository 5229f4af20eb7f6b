"""The stage of the demonstration: homes, commands, processes, and a clean exit whatever happens.

Everything stands below one folder. Processes are ended by their own ids; what still lives at the end is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

COMMAND_SECONDS = 180
PATIENCE_SECONDS = 60
POLL_SECONDS = 0.1
STOP_SECONDS = 15


class DemoFailed(Exception):
    """A step did not do what it should."""


class Stage:
    """Runs commands and processes in a folder of their own. Use as a context manager."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self.folder = folder / "run"
        self.keep = keep
        self.urls: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started = time.monotonic()
        self.command = str(Path(sys.executable).parent / "allmende")

    def __enter__(self) -> Stage:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- telling ------------------------------------------------------------------------------------------------

    def title(self, text: str) -> None:
        """Announce a scene, with the time since the start."""
        self.say(f"\n[{time.monotonic() - self._started:5.1f} s] {text}")

    def say(self, text: str) -> None:
        """Progress goes to standard error: standard output belongs to the summary."""
        print(text, file=sys.stderr, flush=True)

    # -- places -------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """A file of the demonstration."""
        return self.folder / name

    def home(self, name: str) -> Path:
        """The home of an institution, a person or the donor."""
        return self.folder / name

    def take_from_cache(self, name: str, home: Path) -> None:
        """Put what an earlier run kept into a new home: what is slow to build and the same each time."""
        kept = self.folder.parent / name
        if kept.exists():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.rename(home / name)

    def put_into_cache(self, name: str, home: Path) -> None:
        """Keep it for the next run, where this one finds it, too."""
        (home / name).rename(self.folder.parent / name)
        (home / name).symlink_to(self.folder.parent / name)

    # -- commands -----------------------------------------------------------------------------------------------

    def allmende(self, *words: object, quiet: bool = False) -> str:
        """Run `allmende ...` as a person would; returns its standard output."""
        line = [str(word) for word in words]
        if not quiet:
            shown = [word.replace(f"{self.folder}/", "") for word in line]
            self.say("  $ allmende " + " ".join(f"'{word}'" if " " in word else word for word in shown))
        environment = {**os.environ, "HOME": str(self.folder)}
        try:
            done = subprocess.run(
                [self.command, *line],
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"allmende {' '.join(line[:2])} took more than {COMMAND_SECONDS} s") from None
        if done.returncode:
            raise DemoFailed(f"allmende {' '.join(line[:2])} ended with {done.returncode}: {done.stderr.strip()}")
        if not quiet and "--json" not in line:
            for text in done.stdout.strip().splitlines():
                self.say(f"    {text}")
        return done.stdout

    def allmende_json(self, *words: object, quiet: bool = False) -> Any:
        """The same with `--json`."""
        return json.loads(self.allmende(*words, "--json", quiet=quiet))

    def run_without_network(self, *words: object) -> Any:
        """`allmende ... --json` in a network namespace of its own where the system lets us make one."""
        isolate = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
        done = subprocess.run(
            [*isolate, self.command, *map(str, words), "--json"],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": "/nonexistent"},
        )
        if done.returncode:
            raise DemoFailed(f"{' '.join(map(str, words[:2]))}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    # -- processes ----------------------------------------------------------------------------------------------

    def start(self, name: str, *words: object) -> None:
        """Start `allmende ...` in the background, its output in a log of its own."""
        with self.path(f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [self.command, *map(str, words)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "HOME": str(self.folder)},
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """Ask a process to end, and end it if it does not."""
        process = self._processes.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.say(f"  {name} did not stop within {STOP_SECONDS} s")
                process.kill()
        process.wait()

    def stop_all(self) -> None:
        """Those that were started last stop first."""
        for name in reversed(list(self._processes)):
            self.stop(name)

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        self.say(f"  killed {name} (process {process.pid}) with SIGKILL")

    def wait_until(self, what: str, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the condition holds; a background process that died ends the wait at once."""
        deadline = time.monotonic() + seconds
        while not condition():
            for name, process in list(self._processes.items()):
                if process.poll() is not None:
                    tail = self.path(f"{name}.log").read_text(errors="replace").strip().splitlines()[-3:]
                    raise DemoFailed(f"{name} ended with {process.returncode}: {' | '.join(tail)}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {seconds:.0f} s in vain until {what}")
            time.sleep(POLL_SECONDS)
