"""The console script `empirical` and `python -m empirical`: Ctrl-C is answered in one line even while importing."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

PATIENCE = 5.0  # seconds that the first of torchrun's processes has to say what is wrong, before another's end ends it


def main() -> NoReturn:
    """Run the command line. Of the processes that torchrun started the first alone speaks."""
    follows = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
    try:
        if follows:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        from ufm import console

        console.run(_load, "empirical")
    except SystemExit as left:
        if follows and left.code == 2:
            time.sleep(PATIENCE)
        raise
    except KeyboardInterrupt:
        sys.exit(130)


def _load():
    from empirical.cli import main as command

    return command


if __name__ == "__main__":
    main()
