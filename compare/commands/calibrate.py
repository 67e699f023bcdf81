"""`compare calibrate RUN...`: what the model predicts at each network's own regularisation, beside what was measured."""

from __future__ import annotations

import click

from compare.commands.reading import read_runs
from compare.commands.shared import json_option, runs_argument
from ufm.console import examples, format_number, print_json, print_table, safe_text


@click.command(
    "calibrate",
    help="Infer the features' decay from the balance of the two penalties and print the predicted logits, loss, norms, "
    "margins and Grams at that finite regularisation beside the measured ones, and the duality gap of the measured last layer.",
    epilog=examples(("compare calibrate runs/collapse/digits-mlp-*", "3 s"), ("compare calibrate runs/ --json", "3 s")),
)
@runs_argument
@json_option
def command(runs: tuple[str, ...], as_json: bool) -> None:
    """Print calibrated predictions."""
    from compare.calibrate import calibrations
    from compare.points import moment_error
    from ufm.errors import RequestError

    table = read_runs(runs)
    names = [name for name, cell in table.cells.items() if "#" not in name and cell.seeds]
    if not names:
        raise RequestError("these runs hold no finished training; name a folder written by `empirical run`")
    document = []
    for name in names:
        made, cell = calibrations(table, name), table.cells[name]
        errors = [_moments(seed, *found) for seed in cell.seeds if (found := moment_error(cell, seed)) is not None]
        if as_json:
            seeds = [one.record() for one in made]
            document.append({"cell": name, "seeds": seeds, "test_error_from_moments": errors})
            continue
        _print_cell(name, made)
        if errors:
            click.echo("nearest-class-mean error on test, predicted from the moments of its features:")
            print_table(errors, tuple(errors[0]))
            click.echo()
    if as_json:
        print_json(document)


def _print_cell(name: str, made: list) -> None:
    from compare import statistics
    from compare.calibrate import QUANTITIES, explain

    click.echo(safe_text(name))
    found = [one for one in made if one.applies]
    for reason in dict.fromkeys(one.reason for one in made if not one.applies):
        seeds = ", ".join(str(one.seed) for one in made if one.reason == reason)
        click.echo(f"no prediction (seed {seeds}): {safe_text(reason)}")
    if not found:
        click.echo()
        return
    # Geometric means, so that c = sqrt(lambda_w lambda_h) holds between the printed numbers.
    decay_w, decay_h, price = (
        format_number(statistics.mean_over_seeds([getattr(one, key) for one in found], log=True).estimate)
        for key in ("lambda_w", "lambda_h", "c")
    )
    several = f" (geometric means over {len(found)} seeds)" if len(found) > 1 else ""
    click.echo(f"lambda_w {decay_w}, inferred lambda_h {decay_h}, c {price}{several}")
    rows = []
    for quantity in QUANTITIES:
        predicted, measured = (sum(column) / len(found) for column in zip(*(one.values[quantity] for one in found), strict=True))
        ratio = measured / predicted if predicted else float("nan")
        rows.append({"quantity": quantity, "predicted": predicted, "measured": measured, "measured / predicted": ratio})
    print_table(rows, ("quantity", "predicted", "measured", "measured / predicted"))
    away = {key: sum(one.distances[key] for one in found) / len(found) for key in found[0].distances}
    click.echo("relative distance: " + ", ".join(f"{key} {value:.3g}" for key, value in away.items()))
    click.echo(f"prediction: {found[0].describes}; means over {len(found)} seeds")
    click.echo(explain(found))
    for caveat in dict.fromkeys(c for one in found for c in one.caveats):
        click.echo(f"assumption not met: {safe_text(caveat)}")
    click.echo()


def _moments(seed: int, predicted: object, measured: float) -> dict[str, float]:
    """Return one seed's row."""
    numbers = {"seed": seed, "measured": measured, "predicted": predicted.gaussian}
    return {**numbers, "union bound": predicted.union, "cantelli": predicted.cantelli}
