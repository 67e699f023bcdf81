"""Which module may import which, read from every file of the three packages; and what must not be there at all."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ufm", "empirical", "compare")
HEAVY = ("torch", "scipy", "matplotlib", "sklearn", "torchvision", "mlxtend", "joblib", "dask", "distributed")

# What real networks may take from the theory package: measures, geometry and the shared ground, never a solver or a prediction.
SHARED = {
    "console",
    "engine",
    "errors",
    "files",
    "geometry",
    "identity",
    "interrupt",
    "lazy",
    "machine",
    "measure",
    "provenance",
    "record",
    "references",
    "seeds",
    "spec",
    "sweep",
    "tables",
}
LEAVES = {
    "ufm.measure": {"ufm.errors", "ufm.lazy", "ufm.tables", "ufm.seeds", "ufm.geometry"},
    "ufm.geometry": {"ufm.errors", "ufm.tables"},
}


def sources():
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Yield (module, line, at import time) of every import, and of every "module:object" string of a table."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        eager = id(node) not in inner and id(node) not in typing_only
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno, eager
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module, node.lineno, eager
            for name in node.names:
                yield f"{node.module}.{name.name}", node.lineno, eager
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"((?:ufm|empirical|compare)(?:\.\w+)*):\w*", node.value)
            if named:
                yield named[1], node.lineno, False


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_arrow_points_one_way(path):
    package = module_of(path).split(".")[0]
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    for name, line, _ in imports_of(path):
        assert name.split(".")[0] not in above, f"{path.relative_to(ROOT)}:{line} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "empirical").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_real_networks_know_no_solver_and_no_prediction(path):
    for name, line, _ in imports_of(path):
        parts = name.split(".")
        if parts[0] != "ufm":
            continue
        found = parts[1] if len(parts) > 1 else ""
        assert found in SHARED or name in ("ufm", "ufm.__version__"), f"{path.relative_to(ROOT)}:{line} imports {name}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_nothing_of_the_package(leaf):
    paths = [p for p in sources() if module_of(p) == leaf or module_of(p).startswith(leaf + ".")]
    assert paths, f"{leaf} does not exist"
    for path in paths:
        for name, line, _ in imports_of(path):
            if name.split(".")[0] == "ufm" and name != "ufm":
                known = any(name == m or name.startswith(m + ".") for m in (leaf, *LEAVES[leaf]))
                assert known, f"{path.relative_to(ROOT)}:{line} imports {name}"
            elif name.split(".")[0] in ("scipy", "matplotlib", "sklearn"):
                pytest.fail(f"{path.relative_to(ROOT)}:{line}: {leaf} imports torch and numpy only, not {name}")


FORBIDDEN = {
    "pickle": r"\bc?[Pp]ickle\b|\bcloudpickle\b|\bdill\b|\bshelve\b|\bmarshal\b",
    "numpy's pickles": r"allow_" + "pickle",
    "yaml": r"yaml\.(unsafe_)?load\b",
    "a shell": r"shell\s*=\s*True|os\.system\(|os\.popen\(",
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
    "mktemp": r"\bmktemp\(",
    "unsafe torch files": r"weights_only\s*=\s*False",
    "tar without filter": r"\.extractall\((?![^)]*filter=.data)",
}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    code = "\n".join(ast.unparse(node) for node in _without_docstrings(ast.parse(path.read_text(encoding="utf-8"))).body)
    for what, pattern in FORBIDDEN.items():
        assert not re.search(pattern, code), f"{path.relative_to(ROOT)} uses {what}"
    for call in re.findall(r"(?<!safetensors\.)torch\.load\([^)]*\)", code):
        assert "weights_only=True" in call, f"{path.relative_to(ROOT)}: {call}"


def _without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def test_the_forbidden_patterns_find_what_they_are_for():
    samples = {
        "pickle": "import pickle",
        "numpy's pickles": "np.load(f, allow_" + "pickle=True)",
        "yaml": "yaml.load(f)",
        "a shell": "run(x, shell=True)",
        "eval": "x = eval(y)",
        "exec": "exec(y)",
        "mktemp": "tempfile.mktemp()",
        "unsafe torch files": "torch.load(f, weights_only=False)",
        "tar without filter": "t.extractall(path)",
    }
    for what, pattern in FORBIDDEN.items():
        assert re.search(pattern, samples[what])
    assert not re.search(FORBIDDEN["eval"], "model.eval()")


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500, "a module of more than 500 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines"


def test_no_module_is_called_utils_and_no_except_is_bare():
    for path in sources():
        assert path.stem not in ("utils", "helpers", "misc", "common"), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}"


# --- what starting costs -------------------------------------------------------------------------------------------

LIGHT = f"""
import os, sys
sys.argv = ["ufm"]
import ufm, empirical, compare, ufm.cli, ufm.measure.names
from click.testing import CliRunner
from ufm.cli import main
from ufm.systems import SYSTEMS
pages = [["--help"], ["list"], ["list", "measures", "--json"], ["list", "--conventions"]]
pages += [[c, *s, "--help"] for c in ("simulate", "predict") for s in ([], *([name] for name in SYSTEMS))]
for words in pages:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
os.environ.update(COMP_WORDS="ufm simulate single --loss c", COMP_CWORD="4", _UFM_COMPLETE="bash_complete")
result = CliRunner().invoke(main, [], prog_name="ufm", standalone_mode=True)
print(result.output)
loaded = sorted(m for m in {HEAVY!r} if m in sys.modules)
assert not loaded, loaded
"""


def test_help_list_and_completion_import_nothing_heavy():
    answer = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert "plain,ce" in answer.stdout
