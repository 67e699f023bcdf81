"""Every key that the tables name exists, and the BibTeX is well formed."""

import importlib
import re

import pytest

import ufm
from ufm.errors import RequestError
from ufm.references import REFERENCES, cite
from ufm.theory import PREDICTIONS, STATUS, STRUCTURES, TOLERANCE

TABLES = (("ufm.losses", "LOSSES"), ("ufm.measure.names", "MEASURES"), ("ufm.systems", "SYSTEMS"), ("ufm.solvers", "SOLVERS"))


def test_the_theory_cites_known_works():
    for name, entry in {**PREDICTIONS, **STRUCTURES}.items():
        assert entry.reference in REFERENCES, name
        assert entry.summary, name


@pytest.mark.parametrize(("module", "table"), TABLES)
def test_other_tables_cite_known_works(module, table):
    entries = getattr(importlib.import_module(module), table, {})
    for name, entry in entries.items():
        assert not entry.reference or entry.reference in REFERENCES, name


@pytest.mark.parametrize("key", REFERENCES)
def test_bibtex(key):
    text = cite(key)
    kind, body = re.fullmatch(r"@(misc|article|inproceedings)\{" + key + r",\n(.*)\n\}", text, re.S).groups()
    assert text.count("{") == text.count("}")
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", body, re.M))
    assert {"title", "author", "year"} <= set(fields)
    assert re.fullmatch(r"(19|20)\d\d", fields["year"]) and re.search(r"(19|20)\d\d", key).group() <= fields["year"]
    assert "eprint" not in fields or re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
    assert {"misc": None, "article": "journal", "inproceedings": "booktitle"}[kind] in (None, *fields)
    assert text.isascii()


def test_each_work_once_in_order():
    text = cite(["zhu2021", "fang2021", "zhu2021"])
    assert re.findall(r"^@\w+\{(\w+),", text, re.M) == ["zhu2021", "fang2021"]
    eprints = [entry["eprint"] for entry in REFERENCES.values() if "eprint" in entry]
    assert len(set(eprints)) == len(eprints)


def test_unknown_key():
    with pytest.raises(RequestError, match="did you mean 'zhu2021'"):
        cite("zhu2012")


@pytest.mark.parametrize("name", PREDICTIONS)
def test_what_the_list_says_of_a_prediction_holds_for_its_answers(name):
    """On problems of every kind: the status is one of those listed, and the tolerance no larger."""
    from ufm.prediction import DERIVED, EVIDENCE, STATED
    from ufm.tables import load

    assert set(STATUS) == set(TOLERANCE) == set(PREDICTIONS) and set(STATUS[name]) <= {DERIVED, EVIDENCE, STATED}
    answers = [load(PREDICTIONS, name, "prediction")(problem) for problem in problems()]
    answers = [answer for answer in answers if answer.applies]
    assert answers and all(answer.status in STATUS[name] for answer in answers)
    assert all(answer.tolerance <= TOLERANCE[name] for answer in answers)
    assert all(answer.assumptions and answer.reference in REFERENCES for answer in answers)


def problems():
    soft = tuple(tuple(0.7 if i == j else 0.1 for j in range(4)) for i in range(4))
    pairs = tuple(tuple(float(i in (a, b)) for i in range(4)) for a in range(4) for b in range(a))
    free = [
        ufm.Problem(4, dim, counts, loss=loss, bias=bias, lambda_b=0.01 * (bias == "ridge"), features=features, lambda_w=lambda_w)
        for dim in (2, 6)
        for counts in (5, (9, 9, 3, 3))
        for loss in ("ce", "mse", "smoothing", "focal")
        for bias in ("none", "free", "ridge")
        for features in ("free", "nonnegative")
        for lambda_w in (1e-3, 1e3)
    ]
    held = [
        ufm.Problem(4, dim, 5, loss=loss, bias=bias, constraint=constraint, energy_w=0.1, energy_h=0.1)
        for dim in (2, 6)
        for loss in ("ce", "mse", "focal")
        for bias in ("none", "free")
        for constraint in ("sphere", "ball")
    ]
    rows = [
        ufm.Problem(4, 6, 5, loss=loss, bias=bias, lambda_b=0.01 * (bias == "ridge"), targets=targets)
        for loss in ("ce", "mse")
        for bias in ("none", "ridge")
        for targets in (soft, pairs)
    ]
    contrastive = [ufm.Problem(4, 6, 5, loss="supcon", constraint="sphere", features=f) for f in ("free", "nonnegative")]
    return [*free, *held, *rows, *contrastive]
