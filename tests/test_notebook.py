"""docs/notebook.ipynb is the tutorial, executed."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PATH = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def make_notebook():
    spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "docs" / "make_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written():
    return json.loads(PATH.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_has_the_cells_of_the_tutorial_as_it_is(make_notebook):
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in written()] == make_notebook.cells(TUTORIAL), \
        "run: python docs/make_notebook.py"


def test_every_word_of_the_tutorial_is_in_the_notebook(make_notebook):
    changed = {"python": "%run", "pip": "%pip", "export": "os.environ"}  # the first words of commands
    words = " ".join(source for _, source in make_notebook.cells(TUTORIAL)).split()
    known = {*words, *changed}
    lines = [line.split("   #")[0] for line in TUTORIAL.splitlines() if not line.startswith("    export ")]
    assert [word for line in lines for word in line.split() if word not in known] == []


def test_the_notebook_was_executed_without_an_error_and_shows_figures():
    outputs = [output for cell in written() for output in cell.get("outputs", ())]
    assert not any(output["output_type"] == "error" or "\r" in "".join(output.get("text", "")) for output in outputs)
    assert all(cell["execution_count"] for cell in written() if cell["cell_type"] == "code")
    assert any("macro F1" in "".join(output.get("text", "")) for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert PATH.stat().st_size < 1_000_000 and "/tmp" not in PATH.read_text(encoding="utf-8")


EXAMPLE = """# Title

    pip install -e ".[all]"
    export A=1                # as a comment

Text.

    python train_teacher.py --study s    # a comment
    python distill.py --student tiny

Save this as `look.py`:

    import os

    print(os.name)

and run it:

    python look.py

    posix

Save this as `more.py`:

    x = 1

    python more.py

That is all.
"""


def test_commands_become_cells_and_quoted_output_stays_text(make_notebook, monkeypatch):
    monkeypatch.setattr(make_notebook, "FIGURES", {"distill.py": "picture()"})
    cells = make_notebook.cells(EXAMPLE)[1:]
    assert cells[0] == ("markdown", "# Title")
    assert '%pip install -q -e ".[all]"' in cells[1][1] and cells[1][1].endswith('os.environ["A"] = "1"')
    assert cells[2:] == [
        ("markdown", "Text."), ("code", "%run train_teacher.py --study s"), ("code", "%run distill.py --student tiny"),
        ("code", "picture()"), ("markdown", "Save this as `look.py`:"),
        ("code", "%%writefile look.py\nimport os\n\nprint(os.name)"), ("markdown", "and run it:"),
        ("code", "%run look.py"), ("markdown", "    posix\n\nSave this as `more.py`:"),
        ("code", "%%writefile more.py\nx = 1"), ("code", "%run more.py"), ("markdown", "That is all.")]
    with pytest.raises(ValueError, match="no command of the tutorial has the words distill.py"):
        make_notebook.cells("Text.\n")


@pytest.mark.slow
def test_the_notebook_runs(make_notebook):
    """Needs the extra `notebook`."""
    pytest.importorskip("ipykernel")
    pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(PATH, 4)
    make_notebook.execute(notebook)  # raises where a cell fails
    assert any("macro F1" in output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
