import os

import pytest
from hypothesis import settings

# One thread per process, before torch or numpy start theirs.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["MPLBACKEND"] = "Agg"

# The same examples on every run, and no test that fails because a machine is busy.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


@pytest.fixture
def ufm(tmp_path, monkeypatch, capsys):
    """The command `ufm`, run in an empty folder."""
    from command_line import Shell  # here: it imports numpy

    monkeypatch.chdir(tmp_path)

    def load():
        from ufm.cli import main

        return main

    return Shell("ufm", load, tmp_path, capsys)
