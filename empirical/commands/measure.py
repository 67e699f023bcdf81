"""`empirical measure`: the user's own network, from a file of its features."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import click

from ufm import spec
from ufm.console import examples, print_json, print_table, progress, say
from ufm.errors import RequestError
from ufm.spec import option

METRICS, TENSORS = "metrics.jsonl", "tensors.safetensors"
EPILOG = examples(
    ("empirical measure --features features.safetensors --name mynet", "2 s for 60000 x 512"),
    ("empirical measure --features features.npz --epoch 200 --json > rows.json", "2 s"),
)


@dataclasses.dataclass(frozen=True)
class MeasureRequest:
    """What `empirical measure` was asked."""

    features: str | None = option(
        None,
        "file with train/features (N,d), train/labels, test/features, test/labels; also weight (K,d), bias, "
        "train/features/LAYER and test/features/LAYER, ood/features (.safetensors or .npz)",
        kind="path",
        setting=False,
    )
    name: str = option("network", "name of the run", setting=False)
    classes: int | None = option(None, "number of classes; default: rows of weight, or the largest label + 1", kind="int", low=2)
    ood: str | None = option(None, "file with out-of-distribution ood/features (m,d), for nc5", kind="path", setting=False)
    match_counts: bool = option(False, "measure train on as many samples per class as test")
    epoch: int = option(1, "epochs trained, written beside the values (0: an untrained network)", low=0, high=2**31)
    seed: int = option(0, "seed of the network, names the seed-K folder", low=0, high=2**32 - 1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", setting=False)
    out: str = option("runs", "folder of all runs", kind="path", setting=False)


@click.command("measure", epilog=EPILOG)
@spec.click_options(MeasureRequest)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def measure(as_json: bool, **flags: Any) -> None:
    """Measure your own network on train and test from a file of its features, and write a run that `compare` draws."""
    (cell,) = spec.cells(spec.resolve(MeasureRequest, flags))
    request = spec.build(MeasureRequest, cell)
    if request.features is None:
        raise RequestError("no --features; name a .safetensors or .npz file with train/features, train/labels, test/...")
    path, rows = measure_file(request)
    if as_json:
        print_json({"run": str(path), "rows": rows})
        return
    from empirical.rows import COLUMNS, table_of

    print_table(table_of(rows), COLUMNS)
    say(f"written to {path}; see 'compare report {shlex.quote(str(path))} -o report.html'")


def measure_file(request: MeasureRequest) -> tuple[Any, list[dict[str, Any]]]:
    """Read, measure, then write the run folder; returns its seed's path and the rows."""
    from empirical import foreign
    from empirical.devices import resolve_device
    from empirical.store import facts
    from ufm.files import check_name
    from ufm.provenance import environment
    from ufm.record import Run

    check_name(request.name, "run name")
    device = resolve_device(request.device)
    data = foreign.read_features(request.features, request.classes)
    if request.ood is not None:
        data = foreign.with_ood(data, request.ood)
    with progress(2 * len(data.layers), "step") as shown:
        measured, arrays = foreign.measure_foreign(
            data, device, match_counts=request.match_counts, seed=request.seed, report=shown.advance
        )
    rows = [{"seed": request.seed, "epoch": request.epoch, "step": None, **row} for row in measured]
    setting = {"study": "measure", **foreign.summary(data), "match_counts": request.match_counts, "epoch": request.epoch}
    with Run.create(
        request.out, "measure", request.name, setting, seed=request.seed, environment=environment(device, seed=request.seed)
    ) as run:
        run.truncate(METRICS, 0)  # the same request again gives the same rows once
        run.append(METRICS, rows)
        run.write_tensors(TENSORS, arrays)
        told = facts(data.train_labels, data.test_labels, data.classes)
        run.finish({"status": "finished", "ok": True, "epoch": request.epoch, "data": told})
    return run.path, rows
