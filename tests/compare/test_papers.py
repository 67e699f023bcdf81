import dataclasses

import pytest

from compare.papers import PAPERS, Quantity, fits, paper, paper_of, read_paper
from compare.verdict import AGREES
from ufm.errors import RequestError
from ufm.references import REFERENCES
from ufm.spec import cells, resolve


@pytest.mark.parametrize("name", PAPERS)
def test_every_shipped_paper_reads_cites_and_can_be_contradicted(name):
    one = paper(name)
    assert one.name == name and one.version >= 1 and one.claims
    for key in (one.reference, *(claim.reference for claim in one.claims)):
        assert key == "derived" or key in REFERENCES
    for claim in one.claims:
        assert claim.control and claim.control_text and claim.text
        assert claim.controlled() != claim
        known = {cell for scale in one.scales.values() for cell in scale.cells} | {"*"}
        assert {claim.cell, getattr(claim.over, "cell", "") or "*", claim.control.get("cell", "*")} <= known
    for scale in one.scales.values():
        assert len(set(scale.seeds)) == len(scale.seeds) >= 5
    text = " ".join([one.note, one.title, *(claim.text for claim in one.claims)])
    assert AGREES not in text.lower()  # a claim is not a result


@pytest.mark.parametrize("name", [n for n in PAPERS if paper(n).scales])
def test_every_cell_of_an_existing_study_is_a_valid_request_that_finds_itself(name):
    from empirical.studies import STUDIES, study
    from ufm.spec import build

    for scale in paper(name).scales.values():
        for cell in scale.cells.values():
            if cell.get("study") not in STUDIES:  # a theory sweep
                continue
            spec = study(cell["study"]).spec
            experiment = build(spec, cells(resolve(spec, cell["options"]))[0]).resolved()
            assert fits(cell, cell["study"], experiment.setting())
            assert paper_of(cell["study"], experiment.setting()) == name


def test_the_grokking_preset_is_the_cell_of_its_paper():
    from empirical import presets
    from empirical.studies import study
    from ufm.spec import build

    about, options = presets.read("grokking")
    cell = paper("grokking").scales["laptop"].cells["large"]
    experiment = build(study(about["study"]).spec, cells(resolve(study(about["study"]).spec, options))[0]).resolved()
    assert fits(cell, about["study"], experiment.setting())
    assert fits({"study": "collapse", "options": options}, cell["study"], cell["options"])  # and names nothing more


def test_another_setting_is_another_paper():
    cell = paper("hui2022").scales["demo"].cells["collapse"]
    assert paper_of("collapse", cell["options"]) == "hui2022"
    assert paper_of("collapse", {**cell["options"], "weight_decay": 1e-3}) == ""
    assert paper_of("transfer", cell["options"]) == ""
    assert not fits(cell, "collapse", {k: v for k, v in cell["options"].items() if k != "lr"})


def test_a_quantity_reads_as_a_sentence_part():
    assert str(Quantity("nc1_pinv", epoch="all", factor=2)) == "2 x nc1_pinv (train, penultimate, self centres, every epoch)"


GOOD = """
version = 1
name = "mine"
title = "Mine"
[[claims]]
name = "a"
text = "a"
kind = "ratio"
value = { measure = "nc1_pinv" }
control = { epoch = 0 }
"""


def test_a_papers_file_of_ones_own_is_read_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert paper(str(path)).claims[0].value == Quantity("nc1_pinv")
    assert dataclasses.replace(paper(str(path)).claims[0]).controlled().value.epoch == 0


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('kind = "ratio"', 'kind = "ration"', "did you mean 'ratio'"),
        ("control = { epoch = 0 }", "", "has no control"),
        ('title = "Mine"', "", "'title' is missing"),
        ('text = "a"', 'txt = "a"', "unknown key 'txt'"),
        ('{ measure = "nc1_pinv" }', '{ mesure = "nc1_pinv" }', "did you mean 'measure'"),
        ('value = { measure = "nc1_pinv" }', "value = 3.0", "name a measured quantity"),
        ("[[claims]]", "[[claims]]\n[[claims]]", "missing"),
        ("version = 1", "version = ", "not valid TOML"),
        ("version = 1", 'version = "x"', "wrong type"),
        ("control = { epoch = 0 }", "control = { epohc = 0 }", "did you mean 'epoch'"),
        ('{ measure = "nc1_pinv" }', '{ measure = "nc1_pinv", epoch = "first" }', "epoch 'first'"),
        ('kind = "ratio"', 'kind = "ratio"\nleast = "ten"', "least 'ten' of claim 'a' is not a finite number"),
        (
            "[[claims]]",
            '[scales.demo]\nseeds = [0]\ndrawn = ["b"]\n[scales.demo.cells.a]\nstudy = "collapse"\n[[claims]]',
            "draws the cell 'b', which it has not",
        ),
        ("[[claims]]", "claims = 3\n[other]", "wrong type"),
        ('{ measure = "nc1_pinv" }', '{ measure = "nc1_pinv", cell = "b" }', "names a cell inside a quantity"),
    ],
)
def test_a_wrong_file_is_a_one_line_request(tmp_path, old, new, message):
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RequestError, match=message) as caught:
        read_paper(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_paper_gets_a_suggestion():
    with pytest.raises(RequestError, match="did you mean 'hui2022'"):
        paper("hui2202")
