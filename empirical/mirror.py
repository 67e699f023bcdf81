"""TensorBoard as a mirror of a run: every measured value beside its row in metrics.jsonl, which stays the record."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ufm.errors import RequestError
from ufm.record import Run, RunWarning

FILE = "metrics.jsonl"


def check(folder: str | None) -> None:
    """Refuse a mirror that cannot be made: tensorboard is not installed, or `folder` is a file."""
    if folder is None:
        return
    _writer_class()
    if Path(folder).exists() and not Path(folder).is_dir():
        raise RequestError(f"--tensorboard {folder}: it is a file; name a folder")


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RequestError("--tensorboard needs the package tensorboard; pip install 'ufm[track]', or leave it out") from None
    return SummaryWriter


@contextmanager
def mirrored(run: Run, folder: str | None) -> Iterator[None]:
    """While this lasts, write the numbers appended to the run's metrics into `folder`/STUDY/SETTING/seed-K too.

    A tag is SPLIT/LAYER/CENTRES/MEASURE; its steps are the training's. Values taken up again after a resume are equal. A
    mirror that is begun with a resume starts with what was measured before.
    """
    if folder is None:
        yield
        return
    place = Path(folder) / run.system / run.setting_path.name / run.path.name
    earlier = [] if any(place.glob("events.*")) else _recorded(run)
    known = {row["step"] for row in earlier}
    try:
        writer = _writer_class()(log_dir=str(place))
    except OSError as error:
        raise RequestError(f"--tensorboard {folder}: {error.strerror}; name a folder that can be written") from None

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["value"] is not None:
                tag = "/".join(str(row[key]) for key in ("split", "layer", "centres", "metric"))
                writer.add_scalar(tag, row["value"], row["step"])
        writer.flush()

    def show(file: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if file == FILE:
            write([row for row in rows if row["step"] not in known])

    write(earlier)
    run.watchers.append(show)
    try:
        yield
    finally:
        run.watchers.remove(show)
        writer.close()


def _recorded(run: Run) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)  # of a torn last line: the training that goes on cuts it off
        return run.rows(FILE)
