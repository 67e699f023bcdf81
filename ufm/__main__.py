"""The console script `ufm` and `python -m ufm`: Ctrl-C is answered in one line even while importing."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    try:
        from ufm import console

        console.run(_load, "ufm")
    except KeyboardInterrupt:
        sys.exit(130)


def _load():
    from ufm.cli import main as command

    return command


if __name__ == "__main__":
    main()
