"""The studies: what is trained and what is looked at. One file per study, one line per name; no torch until one runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ufm.tables import Entry, load

STUDIES = {
    "collapse": Entry("empirical.studies.collapse:STUDY", "neural collapse on train and on test while a network is trained"),
    "alignment": Entry("empirical.studies.alignment:STUDY", "classes permuted over the vertices of a fixed classifier; margins"),
    "transfer": Entry("empirical.studies.transfer:STUDY", "training on coarse labels, then probes of the fine labels"),
    "starvation": Entry("empirical.studies.starvation:STUDY", "a strong feature against the others, penalties on the logits"),
    "shortcut": Entry("empirical.studies.shortcut:STUDY", "training on a spurious attribute, with or without primes for it"),
    "nesy": Entry("empirical.studies.nesy:STUDY", "digits learnt from the labels of their sums alone, pretrained or not"),
}


@dataclass(frozen=True)
class Study:
    """A study's name, its options and its two functions, named by "module:function" so that listing imports no torch.

    spec: a dataclass of options, `Experiment` or a subclass.
    check: (experiment, seed) -> Cost; every wrong request is found here, before anything is written.
    train: (experiment, run, *, device, threads, stop, report) -> the run's result.
    look: "module:class" of what measures one training (`rows`, `tensors`), where seeds can be trained in one program; else "".
    columns: of the result's final values, for the printed table: heading -> ("split/layer/centres/metric", factor).
    examples: two pairs (command line, how long it takes), for `--help`.
    """

    name: str
    summary: str
    spec: type
    check: str
    train: str
    columns: dict[str, tuple[str, float]]
    examples: tuple[tuple[str, str], tuple[str, str]]
    look: str = ""

    def function(self, which: str) -> Callable[..., Any]:
        """Import and return `check`, `train` or `look`."""
        return load({which: Entry(getattr(self, which), "")}, which, "function")


def study(name: str) -> Study:
    """Return the study `name`; RequestError with a suggestion when there is none."""
    return load(STUDIES, name, "study")
