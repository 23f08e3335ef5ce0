"""What keeps the code readable: the rules of the linter, and quotes in the docs that are the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_linter_finds_nothing():
    """Rules and line length are in pyproject.toml."""
    pytest.importorskip("ruff")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "."],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path, name", [("kd/train/loop.py", "train"), ("kd/losses.py", "knowledge_distillation")])
def test_the_tutorial_quotes_the_code(path, name):
    """A function stands in the tutorial as in its file, without the docstring."""
    source = (ROOT / path).read_text(encoding="utf-8")
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    docstring = function.body[0]
    lines = source.splitlines()
    code = lines[function.lineno - 1:docstring.lineno - 1] + lines[docstring.end_lineno:function.end_lineno]
    quote = "\n".join(f"    {line}" if line else "" for line in code)
    assert f"\n\n{quote}\n\n" in (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")


def test_training_is_one_function_of_about_sixty_lines():
    source = (ROOT / "kd/train/loop.py").read_text(encoding="utf-8")
    function = next(node for node in ast.parse(source).body if getattr(node, "name", None) == "train")
    assert function.end_lineno - function.body[0].end_lineno <= 65


def test_the_readme_lists_every_module():
    """A newcomer finds the place of a change in this list."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme[readme.index("    kd/      "):readme.index("Some commands:")].replace(",", " ").split()
    modules = {path.stem for path in (ROOT / "kd").rglob("*.py") if "sections" not in path.parts} - {"__init__"}
    assert modules <= set(listed)
