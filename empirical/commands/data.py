"""`empirical data list|check|fetch`: what data is present, whether it is whole, how to get it."""

from __future__ import annotations

from typing import Any

import click

from empirical.data import DATASETS
from ufm.console import examples, print_json, print_table, say
from ufm.errors import RequestError
from ufm.tables import find

PRESENT, MISSING = "present", "not here"
EPILOG = examples(("empirical data list", "5 s"), ("empirical data fetch cifar10", "a download of 170 MB"))


@click.group(epilog=EPILOG)
def data() -> None:
    """What data is present; check it; fetch it. Files live in $UFM_DATA, else in the user's cache folder."""


@data.command("list", epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout, nothing else")
def list_data(as_json: bool) -> int:
    """List the data sets with their state, size and licence."""
    rows = [_row(name) for name in DATASETS]
    return _show(rows, ["name", "state", "train", "test", "licence", "get it"], as_json)


@data.command(epilog=EPILOG)
@click.argument("names", nargs=-1, metavar="[NAME|folder:PATH]...")
@click.option("--json", "as_json", is_flag=True, help="one JSON document on stdout, nothing else")
def check(names: tuple[str, ...], as_json: bool) -> int:
    """Read data sets as a training would (seed 0), compare their files with the published checksums, print their SHA-256.

    Without a NAME: all that are here.
    """
    for name in names:
        if not name.startswith("folder:"):
            find(DATASETS, name, "data set")
    rows = [_row(name, checked=True) for name in names or DATASETS]
    if not names:
        rows = [row for row in rows if row["state"] != MISSING]
    bad = [row["name"] for row in rows if row["state"] != PRESENT]
    code = _show(rows, ["name", "state", "train", "test", "files", "digest"], as_json)
    for row in rows:
        if row["state"] != PRESENT:
            say(f"error: {row['reason']}")
    # a folder of one's own that does not read is a wrong request, as for a training; a public file that is broken is a finding
    return code or (2 if any(name.startswith("folder:") for name in bad) else int(bool(bad)))


@data.command(epilog=EPILOG)
@click.argument("name")
def fetch(name: str) -> int:
    """Download one public data set with torchvision, which checks its checksums."""
    from empirical.data.vision import LICENCES, data_folder
    from empirical.data.vision import fetch as fetch_files

    find(DATASETS, name, "data set")
    if name not in LICENCES:
        raise RequestError(f"data set {name!r} needs no download; use it")
    fetch_files(name)
    say(f"{name} is in {data_folder() / name}; licence: {LICENCES[name]}")
    return 0


def _row(name: str, checked: bool = False) -> dict[str, Any]:
    """Return what is known of a data set; `checked`: also how its files compare with the published ones."""
    from empirical.data import load
    from empirical.data.vision import LICENCES, data_folder, published

    try:
        _, _, info = load(name, seed=0)
        files = {"files": published(name)} if checked and name in LICENCES else {}
    except RequestError as error:
        public = name in LICENCES
        missing = not any(p.is_file() for p in (data_folder() / name).rglob("*")) if public else name in DATASETS
        way = f"empirical data fetch {name}" if public else "pip install 'ufm[data]'"
        return {
            "name": name,
            "state": MISSING if missing else "does not read",
            "licence": LICENCES.get(name),
            "get it": way if missing else None,
            "reason": str(error),
        }
    return {"state": PRESENT, **{key: info[key] for key in ("name", "train", "test", "classes", "licence", "digest")}, **files}


def _show(rows: list[dict[str, Any]], columns: list[str], as_json: bool) -> int:
    if as_json:
        print_json(rows)
    else:
        print_table(rows, columns)
    return 0
