"""The documents: every link leads somewhere, and what the README tells a reader to type works as typed."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
DOCUMENTS = [ROOT / name for name in LISTED] or sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SHORTER = {  # words that make the same command a size for a test
    "empirical run collapse --preset digits --seeds 0:5 --workers 2": ("--seeds 0:5 --workers 2", "--seeds 0:2 --steps 40"),
    "ufm simulate deep --depth 3 --init-scale 1 --seeds 0:4": ("--seeds 0:4", "--seeds 0:4 --steps 40"),
    "ufm simulate benign --dim 100:1090:34 --signal 0:9.9:34 --flip .1": (":34", ":2"),
    "ufm simulate shallow --width 160,640,2560 --seeds 0:5": ("160,640,2560", "160"),
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name} links to {target}"


def test_readme_is_short_and_shows_a_figure_first():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert next(i for i, line in enumerate(lines) if line.startswith("![")) < 25


def test_the_page_of_benchmarks_shows_the_results_as_they_are():
    # Found by its path: the benchmarks are no package.
    origin = importlib.util.spec_from_file_location("benchmark_table", ROOT / "benchmarks" / "table.py")
    table = importlib.util.module_from_spec(origin)
    origin.loader.exec_module(table)
    assert table.page() == (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"), "run python benchmarks/table.py"


def commands():
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL):
        for line in block.splitlines():
            command = line.partition("#")[0].strip()
            if command.split(" ")[0] in ("ufm", "empirical", "compare"):
                yield command


def test_every_command_of_the_readme(tmp_path, monkeypatch, capsys):
    """In order, in one folder, as a reader would type them: later ones draw what earlier ones made."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels, test_labels = np.repeat(np.arange(3), 20), np.repeat(np.arange(3), 5)
    centres = rng.standard_normal((3, 8))
    arrays = {
        "train/features": centres[labels] + 0.1 * rng.standard_normal((60, 8)),
        "train/labels": labels,
        "test/features": centres[test_labels] + 0.2 * rng.standard_normal((15, 8)),
        "test/labels": test_labels,
        "weight": centres,
        "bias": np.zeros(3),
    }
    np.savez(tmp_path / "features.npz", **arrays)
    typed = list(commands())
    assert len(typed) >= 10
    for command in typed:
        words = []
        for word in shlex.split(command.replace(*SHORTER.get(command, ("", "")))):
            words += [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.glob(word))] if "*" in word else [word]

        def load(package=words[0]):
            return importlib.import_module(f"{package}.cli").main

        answer = Shell(words[0], load, tmp_path, capsys)(*words[1:])
        assert answer.code == 0, (command, answer.err)
        if "-o" in words:
            assert (tmp_path / words[words.index("-o") + 1]).stat().st_size > 1000


def test_the_python_of_the_readme():
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "ufm.solve" in b)
    ran = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    distance, gap = map(float, ran.stdout.split())
    assert abs(distance) < 1e-12
    assert -1e-13 <= gap < 1e-9
