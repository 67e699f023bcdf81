"""The transfer study: train on coarse labels, and ask at chosen epochs how much of the fine labels the features still hold."""

from __future__ import annotations

from dataclasses import dataclass

from empirical.experiment import Experiment
from empirical.studies import Study
from ufm.errors import RequestError
from ufm.spec import option
from ufm.tables import suggest

FEATURE_PROBES = ("raw", "std", "whiten", "ncc", "knn", "ridge")
PROBES = (*FEATURE_PROBES, "finetune")


@dataclass(frozen=True)
class Transfer(Experiment):
    """An experiment on coarse labels, with the probes of the fine ones."""

    probe: str = option(",".join(PROBES), f"probes, with commas: {', '.join(PROBES)}")
    probe_at: str = option("log", "epochs probed: log, papyan, every, or a list such as 1,10,100")

    def resolved(self) -> Transfer:
        """Return the experiment with its defaults filled in; RequestError for what a transfer cannot do."""
        if self.coarse is None:
            raise RequestError(
                "transfer trains on coarse labels and probes the fine ones: give --coarse, the sizes of the groups, such as 5,5"
            )
        for name in self.probes:
            if name not in PROBES:
                raise RequestError(f"--probe {name!r} is not known; {suggest(name, PROBES)}")
        if self.layers not in ("last", "all") and "penultimate" not in self.layers.split(","):
            raise RequestError(f"--layers {self.layers}: transfer probes the last features; add penultimate")
        return super().resolved()  # type: ignore[return-value]

    @property
    def probes(self) -> tuple[str, ...]:
        """The names of the probes."""
        return tuple(dict.fromkeys(self.probe.split(",")))

    @property
    def moments(self) -> dict[str, str]:
        """When the network is measured, and when it is probed (and measured too)."""
        return {"--measure-at": self.measure_at, "--probe-at": self.probe_at}


STUDY = Study(
    name="transfer",
    summary="training on coarse labels, then probes of the fine labels",
    spec=Transfer,
    check="empirical.transfer:check",
    train="empirical.transfer:train",
    look="empirical.transfer:Look",
    columns={
        "train NC1": ("train/penultimate/self/nc1_pinv", 1.0),
        "raw probe": ("test/penultimate/self/probe_raw", 1.0),
        "whitened": ("test/penultimate/self/probe_whiten", 1.0),
        "ridge": ("test/penultimate/self/probe_ridge", 1.0),
        "fine-tuned": ("test/penultimate/self/probe_finetune", 1.0),
        "effective rank": ("train/penultimate/self/rank_effective", 1.0),
        "test error": ("test/network/self/error", 1.0),
    },
    examples=(
        ("empirical run transfer --preset transfer-digits --seeds 0:5", "5 networks, 1 min on 2 cores"),
        ("empirical run transfer --coarse 5,5 --probe raw,whiten --probe-at 1,10,100", "1 network, 10 s"),
    ),
)
