"""What a person sees of trainings: progress on stderr, the table at the end."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from empirical.rows import SENTENCES
from empirical.runner import Job, Outcome
from empirical.studies import Study
from ufm.console import print_json, print_table, say

PATIENCE = 2.0  # seconds before anything is shown, and between lines where stderr is no terminal


class Progress:
    """A bar over all trainings where stderr is a terminal, else lines, at most one per epoch; only after two seconds."""

    def __init__(self, jobs: int, workers: int) -> None:
        self.jobs, self.workers, self.done = jobs, workers, 0
        self.terminal = sys.stderr.isatty()
        self.begun = self.said = time.monotonic()
        self.epoch = -1
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def of_job(self, job: Job) -> Callable[[Any], None]:
        """Return what a training in this process reports to."""

        def report(training: Any) -> None:
            self.show((self.done + training.step / training.clock.steps), self._line(job, training), int(training.epoch))

        return report

    def _line(self, job: Job, training: Any) -> str:
        loss = training.loss_sum / max(1, training.loss_steps)
        return f"seed {job.seed}: epoch {int(training.epoch)} of {training.clock.epochs}, loss {loss:.3g}"

    def finished(self, outcome: Outcome) -> None:
        """Take note of an outcome."""
        self.done += 1
        self.epoch = -1
        if not outcome.skipped:
            self.show(float(self.done), f"seed {outcome.seed}: {outcome.status} ({self.done} of {self.jobs})", -2)

    def show(self, done: float, line: str, epoch: int) -> None:
        """Show `done` of the jobs; `epoch` decides whether a new line is due."""
        now = time.monotonic()
        if now - self.begun < PATIENCE:
            return
        if self.terminal:
            from tqdm import tqdm

            if self.bar is None:
                shape = "{l_bar}{bar}| [{elapsed}<{remaining}{postfix}]"
                self.bar = tqdm(total=self.jobs, file=sys.stderr, leave=False, bar_format=shape)
            self.bar.n = done
            self.bar.set_postfix_str(line)
        elif epoch == -2 or (epoch != self.epoch and now - self.said >= PATIENCE):
            say(line)
            self.said, self.epoch = now, epoch


def print_outcomes(
    study: Study, outcomes: Sequence[Outcome], varied: Sequence[str], settings: Sequence[Any], as_json: bool
) -> int:
    """Print the table (or JSON) and return the exit status: 1 when a training failed or diverged, 2 for a wrong request."""
    rows, flags = [], [_flags(study, outcome) for outcome in outcomes]
    for outcome, setting in zip(outcomes, settings, strict=True):
        values = dataclasses.asdict(setting)
        final = outcome.result.get("final", {})
        row = {name: values[name] for name in varied} | {"seed": outcome.seed}
        for heading, (key, factor) in study.columns.items():
            row[heading] = None if final.get(key) is None else factor * final[key]
        row["seconds"] = round(sum(outcome.result.get("seconds", {}).values()), 1) if outcome.result else None
        rows.append(row | {"status": outcome.status + (" (before)" if outcome.skipped else "")})
    if as_json:
        print_json({"study": study.name, "runs": [_described(o, r) for o, r in zip(outcomes, rows, strict=True)]})
    else:
        lines = [row | {"flag": flag} for row, flag in zip(rows, flags, strict=True)] if any(flags) else rows
        print_table(lines, lines[0] if lines else [])
    for outcome in outcomes:
        if outcome.exit:
            say(f"error: seed {outcome.seed}: {outcome.status}")
    codes = {outcome.exit for outcome in outcomes} - {0}
    return 0 if not codes else (2 if codes == {2} else 1)


def _flags(study: Study, outcome: Outcome) -> str:
    """Return what the shown values are flagged with, in words."""
    flags = outcome.result.get("flags", {})  # none in results written before flags were kept
    shown = {heading: flags[key] for heading, (key, _) in study.columns.items() if key in flags}
    return "; ".join(f"{heading}: {SENTENCES.get(flag, flag)}" for heading, flag in shown.items())


def _described(outcome: Outcome, row: dict[str, Any]) -> dict[str, Any]:
    shown = {"path": outcome.path, "seed": outcome.seed, "status": outcome.status, "skipped": outcome.skipped}
    return shown | {"summary": row, "final": outcome.result.get("final", {}), "flags": outcome.result.get("flags", {})}
