"""`ufm list`: what there is, with assumptions and references; `--conventions` converts to other papers' normalisations."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import click

from ufm.console import examples, print_json, print_table, safe_text
from ufm.errors import RequestError
from ufm.spec import click_options, option, resolve
from ufm.tables import Entry, find, resolve_target

TABLES = {
    "systems": Entry("ufm.systems:SYSTEMS", "what simulate and predict know"),
    "losses": Entry("ufm.losses:LOSSES", "loss per sample"),
    "solvers": Entry("ufm.solvers:METHODS", "methods of --method"),
    "predictions": Entry("ufm.theory:PREDICTIONS", "closed forms of the optimum, asked in this order by predict and simulate"),
    "structures": Entry("ufm.theory:STRUCTURES", "geometries at their own best scale, optimal or not: ufm.structures in Python"),
    "measures": Entry("ufm.measure.names:MEASURES", "definitions, and whose convention each is"),
}


@dataclass(frozen=True)
class Setting:
    """The balanced setting that `--conventions` converts."""

    classes: int = option(10, "K, for --conventions", low=2)
    per_class: int = option(100, "n, for --conventions", low=1)
    lambda_w: float = option(5e-4, "weight decay on W, for --conventions", low=0, strict=True)
    lambda_h: float = option(5e-4, "weight decay on the features, for --conventions", low=0, strict=True)


@click.command(
    "list",
    help="List systems, losses, solvers, predictions and measures, with assumptions and references.",
    epilog=examples(
        ("ufm list predictions", "1 s"),
        ("ufm list --conventions --classes 10 --per-class 100 --lambda-w 5e-4", "1 s"),
    ),
)
@click.argument(
    "what", required=False, metavar=f"[{'|'.join(TABLES)}]", shell_complete=lambda c, p, i: [n for n in TABLES if n.startswith(i)]
)
@click.option("--conventions", is_flag=True, help="Convert the penalties to other papers' normalisations.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click_options(Setting)
def command(what: str | None, conventions: bool, as_json: bool, **given: Any) -> None:
    """List what there is."""
    if conventions:
        if what is not None:
            raise RequestError(f"--conventions lists conversions, not {what!r}; leave one of them out")
        return _conventions(Setting(**{name: value[0] for name, value in resolve(Setting, given).items()}), as_json)
    for name, value in given.items():
        if value is not None:
            raise RequestError(f"--{name.replace('_', '-')} is used only with --conventions; add --conventions")
    if what is not None:
        find(TABLES, what, "list")
    names = [what] if what is not None else list(TABLES)
    tables = {name: resolve_target(TABLES[name].target) for name in names}
    if as_json:
        print_json({name: [_record(name, key, entry) for key, entry in table.items()] for name, table in tables.items()})
        return
    for name, table in tables.items():
        click.echo(f"{name} ({TABLES[name].summary})")
        for key, entry in table.items():
            _show(name, key, entry)


def _record(table: str, key: str, entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": key,
        "summary": entry.summary,
        "assumptions": entry.assumptions,
        "reference": entry.reference or None,
        "work": _work(entry.reference),
    }
    if table == "predictions":
        from ufm.theory import STATUS, TOLERANCE

        record |= {"status": dict(STATUS[key]), "tolerance": TOLERANCE[key]}
    return record


def _work(reference: str) -> str | None:
    """Return the title and the eprint of a reference."""
    from ufm.references import REFERENCES

    fields = REFERENCES.get(reference)
    if fields is None:
        return None
    return f'"{fields["title"]}", {fields["year"]}' + (f", arXiv:{fields['eprint']}" if "eprint" in fields else "")


NEEDS = {
    "systems": "takes: ",
    "solvers": "takes: ",
    "predictions": "assumes: ",
    "structures": "assumes: ",
}  # else in its own words


def _show(table: str, key: str, entry: Entry) -> None:
    record = _record(table, key, entry)
    if table == "measures":  # sixty names: two lines each
        reference = f" [{entry.reference}]" if entry.reference else ""
        lines = [(entry.summary + reference, ""), (entry.assumptions, "")]
    else:
        status = "; ".join(f"{told} ({where})" if where else told for told, where in record.get("status", {}).items())
        reference = f"{entry.reference}: {record['work']}" if entry.reference else ""
        tolerance = f"{record['tolerance']:g} relative, of the loss" if "tolerance" in record else ""
        lines = [
            (entry.summary, ""),
            (entry.assumptions, NEEDS.get(table, "")),
            (status, "status: "),
            (tolerance, "tolerance: "),
            (reference, "reference: "),
        ]
    click.echo(f"  {key}")
    for text, label in lines:
        for line in textwrap.wrap(safe_text(label + text), 110, subsequent_indent="  ") if text else ():
            click.echo(f"      {line}")


# --- conversions -------------------------------------------------------------------------------------------------


def conversions(setting: Setting) -> list[dict[str, Any]]:
    """Return one row per normalisation: what our lambda_w and lambda_h are called there.

    The layer-peeled row holds at the optimum of balanced cross-entropy, where |W|^2 and |H|^2 are known in closed form.
    """
    K, n = setting.classes, setting.per_class
    lw, lh, N = setting.lambda_w, setting.lambda_h, K * n
    s = math.sqrt(lw * lh * n)
    scale = math.log(1 / s - K + 1) if K * s < 1 else 0.0  # a of the logits a (I - J/K)
    energy = scale * (K - 1) / K
    return [
        _row("this package", "(1/N) sum loss + lambda_w/2 |W|^2 + lambda_h/2 |H|^2", lw, lh),
        _row(
            "feature ridge averaged over samples",
            "(1/N) sum loss + lambda_w/2 |W|^2 + lambda_h/(2N) |H|^2",
            lw,
            N * lh,
            "andriopoulos2024",
        ),
        _row("sum of losses, no 1/N", "sum loss + lambda_w/2 |W|^2 + lambda_h/2 |H|^2", N * lw, N * lh),
        _row("penalties without 1/2", "(1/N) sum loss + lambda_w |W|^2 + lambda_h |H|^2", lw / 2, lh / 2),
        _row("class means as features", "(1/K) sum_k loss(W m_k) + lambda_w/2 |W|^2 + lambda_h/2 |M|^2", lw, n * lh),
        _row("torch MSELoss (mean over classes)", "mean (z - y)^2 + lambda_w/2 |W|^2 + lambda_h/2 |H|^2", 2 * lw / K, 2 * lh / K),
        _row("torch weight_decay, mean loss", "loss.mean(); SGD(weight_decay) on W and on H", lw, lh),
        _row(
            "layer-peeled, at the CE optimum",
            "(1/K)|W|^2 <= E_W, (1/K) sum_k (1/n_k) sum_i |h_ki|^2 <= E_H",
            math.sqrt(lh * n / lw) * energy,
            math.sqrt(lw / (lh * n)) * energy,
            "fang2021",
        ),
    ]


def _row(name: str, objective: str, first: float, second: float, reference: str = "") -> dict[str, Any]:
    return {"convention": name, "objective": objective, "lambda_w": first, "lambda_h": second, "reference": reference}


def _conventions(setting: Setting, as_json: bool) -> None:
    K, n = setting.classes, setting.per_class
    c = math.sqrt(setting.lambda_w * setting.lambda_h)
    numbers = {"K": K, "n": n, "N": K * n, "c": c, "s": c * math.sqrt(n), "Ks": K * c * math.sqrt(n)}
    rows = conversions(setting)
    if as_json:
        return print_json({"numbers": numbers, "conventions": rows})
    print_table(rows, ["convention", "lambda_w", "lambda_h", "objective", "reference"])
    click.echo("(layer-peeled: the columns are E_W and E_H)")
    click.echo(
        f"K = {K}, n = {n}, N = K n = {K * n}; c = sqrt(lambda_w lambda_h) = {c:.6g}; s = c sqrt(n) = {numbers['s']:.6g}; "
        f"K s = {numbers['Ks']:.6g} (below 1 the optimum is not zero, for cross-entropy and squared error)"
    )
