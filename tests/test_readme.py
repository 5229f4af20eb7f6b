"""The README's quick start is run as it is written, in an empty home directory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARKER = "<!-- quick start: run by tests/test_readme.py -->"
BLOCK = re.compile(r"\s*```(?:sh|bash|console)?\n(?P<commands>.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS_MAX = 900
# These run this very test; a quick start that names them would never end.
FORBIDDEN = ("scripts/test", "scripts/check", ".ci/run", "pytest")


def read_quick_start(document: str) -> str:
    """The commands of the fenced block behind the marker; a leading `$ ` is a prompt."""
    assert document.count(MARKER) == 1, f"the README marks its quick start with {MARKER}, once"
    match = BLOCK.match(document.split(MARKER)[1])
    assert match is not None, "a fenced block follows the marker"
    return re.sub(r"^\$ ", "", match["commands"], flags=re.MULTILINE)


def run_commands(commands: str, folder: Path, home: Path) -> tuple[int, str]:
    """Exit status and output of a script that stops at the first command that fails, and says which.

    *Resource handling*: the script leads its own process group, and whatever it left running is killed.
    """
    script = "set -euo pipefail\ntrap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n" + commands
    environment = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": str(home),
    }
    output = home / "output"
    with (
        output.open("wb") as sink,
        subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            status = process.wait(SECONDS_MAX)
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing was left
                os.killpg(process.pid, signal.SIGKILL)
    return status, output.read_text(encoding="utf-8", errors="replace")


def test_the_quick_start_works_as_written(tmp_path: Path) -> None:
    commands = read_quick_start((ROOT / "README.md").read_text(encoding="utf-8"))
    assert not [word for word in FORBIDDEN if word in commands]
    status, output = run_commands(commands, ROOT, tmp_path)
    if status != 0:
        pytest.fail(f"the quick start ended with status {status}:\n{output[-4000:]}", pytrace=False)


def test_a_quick_start_that_fails_names_its_command(tmp_path: Path) -> None:
    status, output = run_commands("true\nfalse # here\ntrue\n", tmp_path, tmp_path)
    assert status == 1
    assert "failed: false" in output


def test_a_prompt_is_no_part_of_a_command() -> None:
    assert read_quick_start(f"# Title\n{MARKER}\n```sh\n$ true\necho $HOME\n```\n") == "true\necho $HOME\n"
