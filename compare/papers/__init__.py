"""One TOML file per paper: its claims, the cells that test them, the tolerances and seeds registered before any run."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare import sweeps
from compare.sweeps import Field
from ufm.errors import RequestError
from ufm.spec import read_toml
from ufm.tables import Entry, find, suggest

# Adding a paper: its TOML file beside this one, and one line here.
PAPERS: dict[str, Entry] = {
    "hui2022": Entry(
        "hui2022.toml",
        "train features collapse, test features do not",
        "balanced classes; batch norm; the terminal phase is reached",
        "hui2022",
    ),
    "mixon2020": Entry(
        "mixon2020.toml",
        "gradient flow of MSE on its invariant subspace, and how loose collapse stays from a random start",
        "MSE, free bias, no penalty, balanced classes",
        "mixon2020",
    ),
    "han2021": Entry(
        "han2021.toml",
        "the central path: signal-to-noise grows by one clock, as t^(1/4)",
        "MSE, W the least-squares optimum, features projected on Sigma_W = I",
        "han2021",
    ),
    "ji2021": Entry(
        "ji2021.toml",
        "cross-entropy flow: an exact clock on the simplex ray, a margin that rises from random starts",
        "no penalty, no bias, balanced classes",
        "ji2021",
    ),
    "sukenik2024": Entry(
        "sukenik2024.toml",
        "deep ReLU models prefer low rank: end points below deep neural collapse, success rates by initial scale",
        "ReLU layers, MSE, no bias, balanced classes",
        "sukenik2024",
    ),
    "gao2023": Entry(
        "gao2023.toml",
        "margins and test accuracy rise after the fit; permuting classes matters over a polygon, not over a simplex",
        "frames drawn uniformly; batch norm, weight decay",
        "gao2023",
    ),
    "zhu2021": Entry(
        "zhu2021.toml",
        "the regularised optimum is a simplex ETF of known value, and every start reaches it",
        "cross-entropy, balanced classes, d >= K - 1",
        "zhu2021",
    ),
    "thrampoulidis2022": Entry(
        "thrampoulidis2022.toml",
        "imbalanced cross-entropy: the exact optimum at finite weight decay, on its slow way to SELI",
        "step imbalance, no bias",
        "thrampoulidis2022",
    ),
    "fang2021": Entry(
        "fang2021.toml",
        "minority collapse: above a threshold of imbalance the minority classifiers coincide",
        "layer-peeled model, step imbalance",
        "fang2021",
    ),
    "jiang2023": Entry(
        "jiang2023.toml",
        "more classes than dimensions: softmax codes and their one-vs-rest margins",
        "unit features and classifiers, K > d + 1, small temperature",
        "jiang2023",
    ),
    "dang2023": Entry(
        "dang2023.toml",
        "deep linear models under imbalance: singular values, thresholds, and a claim on cross-entropy that does not hold",
        "linear layers, MSE or cross-entropy",
        "dang2023",
    ),
    "papyan2020": Entry(
        "papyan2020.toml",
        "NC1 to NC4 fall through the terminal phase of training",
        "balanced classes; batch norm; the terminal phase is reached",
        "papyan2020",
    ),
    "galanti2022": Entry(
        "galanti2022.toml",
        "class-distance normalised variance falls with depth; on test it stops above train",
        "balanced classes; every layer measured",
        "galanti2022",
    ),
    "hesu2023": Entry(
        "hesu2023.toml",
        "the separation law: each layer divides the fuzziness by one factor; on test it stops at the error",
        "balanced classes; every layer measured",
        "hesu2023",
    ),
    "benshaul2022": Entry(
        "benshaul2022.toml",
        "nearest class centres decide in intermediate layers",
        "balanced classes; every layer measured",
        "benshaul2022",
    ),
    "rangamani2023": Entry(
        "rangamani2023.toml",
        "layers before the last collapse as well",
        "balanced classes; every layer measured",
        "rangamani2023",
    ),
    "grokking": Entry(
        "grokking.toml",
        "train is fitted first, test and collapse follow on a slower time scale",
        "large initial weights, weight decay",
        "sakamoto2025",
    ),
    "kothapalli2022": Entry(
        "kothapalli2022.toml",
        "one set of features, every convention of NC1: which convert into each other, and when",
        "ten classes; equal class sizes where a claim says so",
        "kothapalli2022",
    ),
    "wang2024": Entry(
        "wang2024.toml",
        "a shortcut that networks take before the digits, and primes for it that leave the features to the digits",
        "a spurious attribute that is known on train; one class for each of its values",
        "wang2024",
    ),
    "cao2022": Entry(
        "cao2022.toml",
        "benign or harmful overfitting of a two-patch network: decided by n SNR^q",
        "activation max(0, z)^q with q > 2, no flipped labels, small start",
        "cao2022",
    ),
    "kou2023": Entry(
        "kou2023.toml",
        "the same with ReLU and flipped labels: the test error follows n mu^4 / (sigma^4 d)",
        "ReLU, d large against n, one start and step for all",
        "kou2023",
    ),
    "pezeshki2020": Entry(
        "pezeshki2020.toml",
        "gradient starvation: a strong feature keeps others from being learnt, a penalty on the logits does not let it",
        "linearised model, logistic loss; moons and coloured digits with a feature that suffices on train",
        "pezeshki2020",
    ),
    "daniele2024": Entry(
        "daniele2024.toml",
        "digits learnt from the labels of their sums alone: what a plain network pretrained on the same labels is worth",
        "an exact probabilistic sum; every digit occurs",
        "daniele2024",
    ),
    "razborov2022": Entry(
        "razborov2022.toml",
        "two-layer ReLU networks: the residual follows its kernel as the width grows, and is fitted far below that width",
        "squared error, random inputs; the paper's own widths and experiments are not compared",
        "razborov2022",
    ),
    "general": Entry(
        "general.toml",
        "what must hold for every measured network: the test floor and the test identity",
        "affinely independent train means (rank K-1)",
        "derived",
    ),
}
SCALES = ("demo", "laptop", "gpu")
KINDS = ("equivalence", "ratio", "bound", "identity", "law", "share")


@dataclass(frozen=True)
class Quantity:
    """One measured number: which measure, of which split, layer, centres and epoch ("last", "all", "mean", "fitted" or a number).

    "mean" is the mean over all epochs at which a seed was measured: the area under its curve.
    "fitted" is each seed's first measured epoch at which no train sample is misclassified: where the terminal phase begins.
    cell: of a ratio's `over`, another cell of the paper, so that the same seeds are compared under two settings.
    """

    measure: str
    split: str = "train"
    layer: str = "penultimate"
    centres: str = "self"
    epoch: str | int = "last"
    factor: float = 1.0
    cell: str = ""

    def __str__(self) -> str:
        scale = "" if self.factor == 1 else f"{self.factor:g} x "
        words = {"last": "", "all": ", every epoch", "fitted": ", first epoch of train error 0", "mean": ", mean over epochs"}
        when = words.get(self.epoch, f", epoch {self.epoch}")
        return f"{scale}{self.measure} ({self.split}, {self.layer}, {self.centres} centres{when})"

    def changed(self, changes: Mapping[str, Any]) -> Quantity:
        """Return the quantity with some of its fields replaced."""
        known = {f.name for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if k in known})


@dataclass(frozen=True)
class Claim:
    """A statement that a measurement can contradict, written down before the measurement.

    kind "equivalence": `value` lies within `predicted` +- `tolerance` (two one-sided tests over seeds); `null` changes the
    quantity into one where nothing is to be found (another epoch or cell, or random = "gaussian_means"), and the tolerance must
    be at most a third of its 1 % quantile.
    kind "ratio": `value` / `over` is at least `least` in the geometric mean (one-sided test) and `least_each` in every seed.
    kind "bound": `value` >= `over` at every measured point. kind "identity": `value` = the sum of `terms` at every point.
    kind "law" (theory sweeps): every point of `value` lies within `tolerance` of `predicted`, or of the field `over`; with
    `relative` the distance is relative. kind "share" (theory sweeps): `value` is 0 or 1, and 1 in a share of at least `least`
    of all starts, by a binomial test.
    `control` changes quantities (by epoch, split, ...) or the claim's numbers into a case that must deviate.
    `contradicted`: the reference of a work that refutes the claim; it is judged all the same, and is expected to deviate.
    """

    name: str
    text: str
    kind: str
    value: Quantity | Field
    cell: str = "*"  # a cell of the paper's scale; "*": any training
    scales: tuple[str, ...] = SCALES
    over: Quantity | Field | float = 1.0
    terms: tuple[Quantity, ...] = ()
    predicted: float = 0.0
    tolerance: float = 0.0
    least: float = 1.0
    least_each: float = 0.0
    log: bool = False
    relative: bool = False
    contradicted: str = ""
    null: Mapping[str, Any] | None = None
    seeds_needed: int = 5  # a bound that is a theorem may be checked on one network
    control: Mapping[str, Any] = field(default_factory=dict)
    control_text: str = ""
    assumption: str = ""
    reference: str = ""

    def controlled(self) -> Claim:
        """Return the negative control of the claim: the same statement where it must fail."""
        change = {k: v for k, v in self.control.items() if k != "cell"}  # that one says which rows are read, not of what
        changes: dict[str, Any] = {k: v for k, v in change.items() if k in OWN}
        if "terms" in changes:
            changes["terms"] = tuple(t for t in self.terms if t.measure in changes["terms"])
        over = self.over
        if isinstance(over, Field):
            over = over.changed({k: v for k, v in change.items() if k == "where"})
        if isinstance(over, Quantity):
            factor, cell = change.get("over_factor", over.factor), change.get("over_cell", over.cell)
            over = over.changed({**change, "factor": factor, "cell": cell})
        value = self.value.changed({k: v for k, v in change.items() if k != "factor" or isinstance(self.value, Field)})
        return dataclasses.replace(self, name=f"{self.name}-control", value=value, over=over, null=None, control={}, **changes)


# What a control or a null may change: a quantity's fields, the claim's numbers, the cell that is read, the kind of noise.
OWN = {"predicted", "tolerance", "least", "least_each", "terms"}
CHANGES = (
    {f.name for kind in (Quantity, Field) for f in dataclasses.fields(kind)}
    | OWN
    | {"over_factor", "over_cell", "cell", "random"}
)


@dataclass(frozen=True)
class Scale:
    """How large the runs are: cells and the registered seeds.

    A cell is {"study": ..., "options": {...}} for trainings, or {"system": ..., "options": {...}} for a theory sweep, whose
    options may be grids, with "zip" (options that walk together) and "seeds" of its own ("0:96").
    """

    name: str
    cells: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    summary: str = ""
    figures: tuple[str, ...] = ()  # instead of the paper's, where a scale runs only some of the studies
    drawn: tuple[str, ...] = ()  # the cells that figures show; () for all: controls of another kind would spoil a sweep's


@dataclass(frozen=True)
class Paper:
    """A paper's claims as data. `version` rises whenever a claim, a tolerance or a setting changes."""

    name: str
    version: int
    title: str
    reference: str
    claims: tuple[Claim, ...]
    scales: dict[str, Scale] = field(default_factory=dict)
    figures: tuple[str, ...] = ()
    note: str = ""

    @property
    def smallest(self) -> str:
        """Name of the smallest scale; RequestError where the paper has none."""
        for name in SCALES:
            if name in self.scales:
                return name
        raise RequestError(
            f"{self.name} has no scale: it runs nothing and is judged on any run; `compare verdict RUN --paper {self.name}`"
        )

    def scale(self, name: str) -> Scale:
        """Return one scale; RequestError where the paper has none of that name."""
        if name not in self.scales:
            raise RequestError(f"{self.name} has no scale {name!r}; {suggest(name, self.scales)}")
        return self.scales[name]


@functools.cache
def paper(name: str) -> Paper:
    """Return the paper of that name, or the one in a file that ends in .toml; RequestError with a suggestion otherwise."""
    path = Path(name)
    if path.suffix == ".toml" and name not in PAPERS:
        return read_paper(path)
    return read_paper(Path(__file__).with_name(find(PAPERS, name, "paper").target))


def read_paper(path: Path) -> Paper:
    """Read and check one paper's TOML file; RequestError naming the file, the key and the rule."""
    document = read_toml(path)
    where = path.name
    try:
        claims = tuple(_claim(where, record) for record in document["claims"])
        scales = {name: _scale(where, name, record) for name, record in document.get("scales", {}).items()}
        result = Paper(
            name=str(document["name"]),
            version=int(document["version"]),
            title=str(document["title"]),
            reference=str(document.get("reference", "")),
            claims=claims,
            scales=scales,
            figures=tuple(document.get("figures", ())),
            note=str(document.get("note", "")),
        )
    except KeyError as missing:
        raise RequestError(f"{where}: the key {missing} is missing; see compare/papers/hui2022.toml for an example") from None
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{where}: a value has the wrong type ({error}); see compare/papers/hui2022.toml (version, name)"
        ) from None
    names = [claim.name for claim in claims]
    if len(set(names)) != len(names):
        raise RequestError(f"{where}: two claims have the same name; give each its own")
    return result


def _known(where: str, what: str, record: Mapping[str, Any], known: set[str]) -> None:
    for key in record:
        if key not in known:
            raise RequestError(f"{where}: unknown key {key!r} in {what}; {suggest(key, known)}")


def _quantity(where: str, record: Any) -> Quantity | Field | float:
    if isinstance(record, (int, float)) and math.isfinite(record):
        return float(record)
    if not isinstance(record, Mapping):
        raise RequestError(f"{where}: {record!r} is not a quantity; write {{ measure = ... }}, {{ field = ... }} or a number")
    if "field" in record:
        _known(where, "a field", record, {f.name for f in dataclasses.fields(Field)})
        return Field(**record)
    _known(where, "a quantity", record, {f.name for f in dataclasses.fields(Quantity)})
    made = Quantity(**record)
    if made.epoch not in ("last", "all", "mean", "fitted") and (isinstance(made.epoch, bool) or not isinstance(made.epoch, int)):
        raise RequestError(f'{where}: epoch {made.epoch!r} of {made.measure} is not "last", "all", "mean", "fitted" or a number')
    return made


def _claim(where: str, record: Mapping[str, Any]) -> Claim:
    _known(where, "a claim", record, {f.name for f in dataclasses.fields(Claim)})
    if record["kind"] not in KINDS:
        raise RequestError(f"{where}: unknown kind {record['kind']!r}; {suggest(record['kind'], KINDS)}")
    value = _quantity(where, record["value"])
    if not isinstance(value, (Quantity, Field)):
        raise RequestError(f"{where}: the value of claim {record['name']!r} is a number; name a measured quantity")
    over = _quantity(where, record.get("over", 1.0))
    if (isinstance(value, Quantity) and value.cell) or (isinstance(over, Quantity) and over.cell and record["kind"] != "ratio"):
        raise RequestError(
            f"{where}: claim {record['name']!r} names a cell inside a quantity; only the over of a ratio may, others "
            "write cell = ... beside the value"
        )
    for part in ("null", "control"):
        _known(where, f"the {part} of claim {record['name']!r}", record.get(part) or {}, CHANGES)
    for name in ("predicted", "tolerance", "least", "least_each", "seeds_needed"):
        number = record.get(name, 0.0)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise RequestError(f"{where}: {name} {number!r} of claim {record['name']!r} is not a finite number")
    if (record["kind"] in ("law", "share")) and not isinstance(value, Field):
        raise RequestError(f"{where}: kind {record['kind']!r} of claim {record['name']!r} is for {{ field = ... }} of a sweep")
    converted = {
        **record,
        "value": value,
        "over": over,
        "terms": tuple(_quantity(where, term) for term in record.get("terms", ())),
        "scales": tuple(record.get("scales", SCALES)),
    }
    if not record.get("control"):
        raise RequestError(f"{where}: claim {record['name']!r} has no control; say where it must fail, or it cannot be tested")
    return Claim(**converted)


def _scale(where: str, name: str, record: Mapping[str, Any]) -> Scale:
    _known(where, f"scales.{name}", record, {"cells", "seeds", "summary", "figures", "drawn"})
    if name not in SCALES:
        raise RequestError(f"{where}: unknown scale {name!r}; {suggest(name, SCALES)}")
    cells = {key: _cell(where, f"scales.{name}.cells.{key}", cell) for key, cell in record["cells"].items()}
    seeds, figures = tuple(int(s) for s in record["seeds"]), tuple(map(str, record.get("figures", ())))
    drawn = tuple(map(str, record.get("drawn", ())))
    for key in drawn:
        if key not in cells:
            raise RequestError(f"{where}: scales.{name} draws the cell {key!r}, which it has not; {suggest(key, cells)}")
    return Scale(name, cells, seeds, str(record.get("summary", "")), figures, drawn)


def _cell(where: str, what: str, record: Mapping[str, Any]) -> dict[str, Any]:
    if "system" not in record:
        _known(where, what, record, {"study", "options"})
        return {"study": record["study"], "options": dict(record.get("options", {}))}
    _known(where, what, record, {"system", "options", "zip", "seeds"})
    cell = {**record, "options": dict(record.get("options", {}))}
    sweeps.grid_of(cell)  # a wrong option is said when the file is read
    return cell


# --- which paper a run belongs to ----------------------------------------------------------------------------------


def fits(cell: Mapping[str, Any], system: str, setting: Mapping[str, Any]) -> bool:
    """Whether a run of `system` with the resolved `setting` is this cell: the study and every option named agree.

    Of a theory sweep every option counts, and a row must be on the grid.
    """
    if "system" in cell:
        return sweeps.fits(cell, system, setting)
    return cell["study"] == system and all(
        key in setting and _same(wanted, setting[key]) for key, wanted in ((_key(k), v) for k, v in cell["options"].items())
    )


def _key(name: str) -> str:
    return name.replace("-", "_")


def _same(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, (int, float)) and isinstance(found, (int, float)):
        return math.isclose(wanted, found, rel_tol=1e-12)
    if isinstance(found, (list, tuple)) and not isinstance(wanted, (list, tuple)):
        return list(found) == [wanted] or ",".join(map(str, found)) == str(wanted)
    return wanted == found or str(wanted) == str(found)


def paper_of(system: str, setting: Mapping[str, Any]) -> str:
    """Return the name of the shipped paper one of whose cells this run is, or ''.

    Where two papers have the cell, it is of the one that does not need it for a negative control alone.
    """
    found = ""
    for name in PAPERS:
        one = paper(name)
        controls = {str(c.control["cell"]) for c in one.claims if "cell" in c.control}
        borrowed = controls - {c.cell for c in one.claims}
        for scale in one.scales.values():
            fitting = {key for key, cell in scale.cells.items() if fits(cell, system, setting)}
            if fitting - borrowed:
                return name
            found = found or (name if fitting else "")
    return found
