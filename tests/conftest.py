import os

from hypothesis import settings

# One thread per process, before torch or numpy start theirs.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["MPLBACKEND"] = "Agg"

# The same examples on every run, and no test that fails because a machine is busy.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")
