"""The command `allmende`: checks that assertions are on, then hands over to the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status.

    Assertions guard the ledger's invariants (conservation, no balance below zero), so a Python that was told
    to skip them is refused before anything else is imported.
    """
    if not __debug__:
        sys.stderr.write("Error: allmende needs its assertions; start Python without -O and PYTHONOPTIMIZE\n")
        sys.exit(1)
    from node.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
