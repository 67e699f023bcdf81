"""The page on measuring one's own network does what it says, from top to bottom."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from empirical.cli import main
from ufm.record import Run

DOCS = Path(__file__).parent.parent.parent / "docs"
TEXT = (DOCS / "your-network.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_its_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks("python")))
    runpy.run_path(str(script))
    assert "nc1_pinv_strong" in capsys.readouterr().out
    (seed,) = tmp_path.glob("runs/measure/mine-*/seed-0")
    assert Run.open(seed).done
    (command,) = blocks("sh")
    program, *arguments = shlex.split(command)
    assert program == "empirical"
    result = CliRunner().invoke(main, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    assert len(list(tmp_path.glob("runs/measure/mine-*/seed-0/done"))) == 2


@pytest.mark.parametrize(
    "target", re.findall(r"\]\(([^)#]+)\)", re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE))
)
def test_its_links_exist(target):
    assert (DOCS / target).exists()
