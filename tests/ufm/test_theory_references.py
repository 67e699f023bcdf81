"""Every key that the tables name exists, and the BibTeX is well formed."""

import importlib
import re

import pytest

from ufm.errors import RequestError
from ufm.references import REFERENCES, cite
from ufm.theory import PREDICTIONS, STRUCTURES

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
