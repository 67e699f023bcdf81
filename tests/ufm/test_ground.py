"""Seeds, tables and signals: the small shared modules."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ufm.errors import RequestError
from ufm.interrupt import Interrupted, stop_on_signals
from ufm.seeds import check_seed, stream
from ufm.tables import Entry, find, load, resolve_target, suggest


def test_streams_are_those_of_numpy_and_independent_of_each_other():
    import hashlib

    key = int.from_bytes(hashlib.sha256(b"init").digest()[:8], "little")
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, key]))).normal(size=5)
    assert np.array_equal(stream(7, "init").normal(size=5), expected)
    draws = {(s, n): stream(s, n).integers(2**63) for s in range(20) for n in ("init", "order", "sample", "noise")}
    assert len(set(draws.values())) == len(draws)
    # Pinned: results recorded under a seed must come again in every later version.
    assert stream(0, "init").integers(2**63) == stream(0, "init").integers(2**63) == 5132934730272839325


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, float("nan"), float("inf"), "1", None, [1]])
def test_wrong_seeds(seed):
    with pytest.raises(RequestError, match="seed"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(5), 3.0])
def test_right_seeds(seed):
    assert check_seed(seed) == seed and type(check_seed(seed)) is int


TABLE = {"path": Entry("os.path:join", "joins"), "gone": Entry("no.such:thing", "-")}


def test_tables():
    assert load(TABLE, "path", "tool") is os.path.join and resolve_target("os:sep") == os.sep
    assert find(TABLE, "gone", "tool").summary == "-"
    with pytest.raises(RequestError, match="unknown tool 'pth'; did you mean 'path'"):
        load(TABLE, "pth", "tool")
    assert suggest("zzzz", ["a", "b"]) == "known: a, b"


def test_a_signal_sets_the_flag_and_handlers_come_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        with stop_on_signals() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert stop and stop.signum == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before


def test_grace_breaks_off_work_that_catches_every_exception():
    with pytest.raises(Interrupted) as caught, stop_on_signals(grace=0.05):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            try:
                time.sleep(0.01)
            except Exception:
                pytest.fail("an interrupt is no Exception")
    assert caught.value.signum == signal.SIGTERM
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_grace_does_nothing_to_work_that_ends_in_time():
    with stop_on_signals(grace=0.05) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    assert stop


def test_the_second_signal_ends_the_process_at_once():
    program = (
        "import os, signal, time; from ufm.interrupt import stop_on_signals\n"
        "with stop_on_signals():\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 130 and done.stderr == ""


def test_in_another_thread_nothing_is_installed():
    import threading

    seen = []

    def body():
        with stop_on_signals(grace=1) as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
