"""`empirical data list|check|fetch`: what data is present, whether it is whole, how to get it."""

from __future__ import annotations

from typing import Any

import click

from empirical.data import DATASETS
from ufm.console import examples, print_json, print_table, say
from ufm.errors import RequestError
from ufm.tables import find

EPILOG = examples(("empirical data list", "5 s"), ("empirical data fetch cifar10", "a download of 170 MB"))


@click.group(epilog=EPILOG)
def data() -> None:
    """What data is present; check it; fetch it. Files live in $UFM_DATA, else in the user's cache folder."""


@data.command("list", epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout, nothing else")
def list_data(as_json: bool) -> int:
    """List the data sets with their state, size and licence."""
    rows = [_row(name) for name in DATASETS]
    return _show(rows, ["name", "state", "train", "test", "licence"], as_json)


@data.command(epilog=EPILOG)
@click.argument("names", nargs=-1, metavar="[NAME|folder:PATH]...")
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout, nothing else")
def check(names: tuple[str, ...], as_json: bool) -> int:
    """Read data sets as a training would and print their SHA-256; those present when no NAME is given."""
    for name in names:
        if not name.startswith("folder:"):
            find(DATASETS, name, "data set")
    rows = [_row(name) for name in names or DATASETS]
    if not names:
        rows = [row for row in rows if row["state"] == "present"]
    code = _show(rows, ["name", "state", "train", "test", "digest"], as_json)
    for row in rows:
        if row["state"] != "present":
            say(f"error: {row['reason']}")
    return code or int(any(row["state"] != "present" for row in rows))


@data.command(epilog=EPILOG)
@click.argument("name")
def fetch(name: str) -> int:
    """Download one public data set with torchvision, which checks its checksums."""
    from empirical.data.vision import LICENCES, data_folder, open_set

    find(DATASETS, name, "data set")
    if name not in LICENCES:
        raise RequestError(f"data set {name!r} needs no download; use it")
    for train in (True, False):
        open_set(name, train, download=True)
    say(f"{name} is in {data_folder() / name}; licence: {LICENCES[name]}")
    return 0


def _row(name: str) -> dict[str, Any]:
    from empirical.data import load

    try:
        _, _, info = load(name, seed=0)
    except RequestError as error:
        return {"name": name, "state": "missing or bad", "reason": str(error)}
    return {"state": "present", **{key: info[key] for key in ("name", "train", "test", "classes", "licence", "digest")}}


def _show(rows: list[dict[str, Any]], columns: list[str], as_json: bool) -> int:
    if as_json:
        print_json(rows)
    else:
        print_table(rows, columns)
    return 0
