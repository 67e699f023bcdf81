"""`ufm list` and `ufm cite` give what a methods section needs, and say no more than what was proven."""

import re

from ufm.references import REFERENCES
from ufm.solvers import METHODS
from ufm.theory import PREDICTIONS


def blocks(text):
    """name -> the lines below it, of what `ufm list` prints."""
    parts = re.split(r"^  (\S+)$", text, flags=re.M)
    return {name: " ".join(body.split()) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_prediction_says_what_it_assumes_how_far_it_is_proven_to_what_tolerance_and_whose_it_is(ufm):
    told = blocks(ufm("list", "predictions").out)
    assert set(told) == set(PREDICTIONS)
    for name, text in told.items():
        entry = PREDICTIONS[name]
        assert re.search(r"assumes: .+ status: .+ tolerance: 1e-1\d relative, of the loss reference: ", text), name
        assert f'reference: {entry.reference}: "{REFERENCES[entry.reference]["title"]}"' in text
    assert "evidence only (multistart), not proven (K > d+1: softmax codes)" in told["unit_norm"]
    assert "evidence only" not in told["two_sizes"]
    record = {r["name"]: r for r in ufm("list", "predictions", "--json").json["predictions"]}
    assert record["balanced_mse"]["tolerance"] == 1e-12 and record["contrastive"]["status"] == {"stated in the source": ""}
    assert record["two_sizes"]["work"].endswith("2023, arXiv:2309.09725")


def test_every_method_and_structure_is_listed_and_no_line_is_too_long(ufm):
    assert set(blocks(ufm("list", "solvers").out)) == set(METHODS)
    assert "simplex equiangular tight frame" in blocks(ufm("list", "structures").out)["etf"]
    assert max(map(len, ufm("list").out.splitlines())) <= 120


def test_cite_tells_of_each_run_what_it_used_and_what_was_proven(ufm):
    small = ("--classes", "4", "--dim", "6", "--per-class", "5", "--device", "cpu")
    ufm("simulate", "single", *small, "--loss", "ce,focal", "--seeds", "0:2")
    ufm("simulate", "single", *small, "--method", "flow", "--steps", "50")
    answer = ufm("cite", "runs")
    comments = [line for line in answer.out.splitlines() if line.startswith("%")]
    text = " ".join(" ".join(line[1:].split()) for line in comments)
    assert "4 cells of `single`; 4 converged" in text and "loss ce (2 cells) [zhu2021]" in text
    assert "loss focal (2 cells) [zhou2022losses]" in text and "solver lbfgs (4 cells) [liu1989]" in text
    assert "solver flow (1 cell) [dormand1980]" in text
    assert (
        "prediction etf (2 cells) [zhu2021]; derived and verified numerically; assumes balanced classes, d >= K-1, "
        "global minimum; loss to 1e-12 relative" in text
    )
    assert "optimal by its certificate: 4 of 4 cells" in text  # the focal loss by its scalar bound
    cited = set(re.findall(r"\[(\w+)\]", text)) | {"zhu2021"}
    assert set(re.findall(r"^@\w+\{(\w+),", answer.out, re.M)) == cited
    document = ufm("cite", "runs", "--json").json
    assert set(document["keys"]) == cited and {one["cells"] for one in document["used"]} == {4, 1}
    assert all(len(line) <= 120 for line in comments)


def test_a_cold_sphere_proves_nothing_by_a_loss_that_is_zero(ufm):
    cold = ("--constraint", "sphere", "--temperature", "1e-4", "--per-class", "1", "--device", "cpu")
    ufm("simulate", "single", "--classes", "3", "--dim", "2", *cold)
    ufm("simulate", "single", "--classes", "4", "--dim", "2", *cold)
    assert "optimal by" not in ufm("cite", "runs").out


def test_flows_and_deep_runs_name_their_law_their_structures_and_their_solver(ufm):
    ufm("simulate", "flow", "--init", "subspace", "--t-end", "20")
    ufm("simulate", "flow", "--init", "central", "--init-scale", "1", "--t-end", "20")
    ufm("simulate", "flow", "--init", "random", "--method", "momentum", "--t-end", "5")
    ufm("simulate", "deep", "--depth", "4", "--steps", "20")
    ufm("simulate", "deep", "--activation", "linear", "--classes", "4", "--dim", "5", "--depth", "2")
    answer = ufm("cite", "runs")
    comments = " ".join(line[1:].strip() for line in answer.out.splitlines() if line.startswith("%"))
    by_run = {text.split(":")[0]: text for text in re.split(r" (?=\S+: 1 cell of `)", comments)}
    told = {name.rsplit("-", 1)[0]: text for name, text in by_run.items()}
    subspace, central = told["mse-subspace-c4"], told["mse-central-c4"]
    assert "prediction law mixon2020: squared singular values" in subspace and "[mixon2020]; derived" in subspace
    assert "prediction law han2021" in central and "[han2021]; stated in the source" in central
    assert all("solver flow (1 cell) [dormand1980]" in text for text in (subspace, central))
    assert "no closed form is known for 1 cell" in told["mse-random-c4"]
    assert "solver momentum (1 cell) [polyak1964]" in told["mse-random-c4"]
    relu, linear = told["relu-mse-c10-d4"], told["linear-mse-c4-d2"]
    assert "prediction srg (1 cell) [sukenik2024]; evidence only" in relu and "solver adam (1 cell) [kingma2015]" in relu
    assert "prediction dnc (1 cell) [sukenik2023]; evidence only" in relu
    assert "prediction of (1 cell) [dang2023]; derived" in linear and "solver lbfgs (1 cell) [liu1989]" in linear
    assert comments.count("no closed form") == 1
    cited = set(re.findall(r"\[(\w+)\]", comments))
    assert cited <= set(re.findall(r"^@\w+\{(\w+),", answer.out, re.M))


def test_the_works_that_a_system_rests_on_are_cited_with_its_runs(ufm):
    assert not ufm("simulate", "shallow", "--samples", "4", "--width", "8", "--t-end", "1").code
    assert {"razborov2022", "jacot2018", "cho2009"} <= set(ufm("cite", "runs", "--json").json["keys"])
