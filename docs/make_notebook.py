"""Make docs/notebook.ipynb, the executed tutorial, from docs/tutorial.md. Needs the extra `notebook`.

    python docs/make_notebook.py

It runs the commands in a copy of the clone, about ten minutes on two cores. Where only words have changed, the outputs
stay; delete the notebook to run it anyway.

In the tutorial an indented block of commands becomes a cell for each command, and one that is saved as a file a cell
that writes it. All else, such as quoted code and output, is text.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"

ABOUT = """This notebook is [tutorial.md](tutorial.md), executed by `docs/make_notebook.py`. Blocks in the text quote
the tutorial's output; the output below a command is that of this notebook. The options behind **Change** were not run
here."""

SETUP = """# On Colab write the address of the repository between the quotes, as `git clone` takes it.
REPOSITORY = ""

import os
import sys

if "google.colab" in sys.modules and not os.path.exists("distill.py"):
    assert REPOSITORY, "write the address of the repository into this cell"
    !git clone --quiet --depth 1 {REPOSITORY} clone
    %cd -q clone
    %{install}
if not os.path.exists("distill.py"):
    %cd -q ..
{variables}"""

# Further cells, each after the first command in which its words are.
FIGURES = {
    "train_teacher.py": """# Images of the test split: the run keeps a few
import numpy as np
from matplotlib import pyplot as plt
from pathlib import Path


def newest(name):
    return max(Path("runs").glob(f"*/*/seed_*/{name}"), key=lambda path: path.stat().st_mtime)


images = np.load(newest("samples.npz"))["images"][:8]
for axis, image in zip(plt.subplots(1, len(images), figsize=(8, 1.2), dpi=80)[1], images):
    axis.imshow(image)
    axis.axis("off")""",
    "--beta": """# Where teacher (middle) and student (below) look, second stage, on images where they differ
maps = np.load(newest("attention.npz"))
figure, axes = plt.subplots(3, len(maps["images"]), figsize=(4, 3.2), dpi=80)
for row, pictures in zip(axes, (maps["images"], maps["teacher"][:, 1], maps["student"][:, 1])):
    for axis, picture in zip(row, pictures):
        axis.imshow(picture.astype(float) / picture.max(), cmap="magma")
        axis.axis("off")""",
    "evaluate.py --compare": """# Macro-F1 on validation after each epoch, seed 0
import csv

plt.figure(figsize=(6, 3), dpi=80)
for path in sorted(newest("history.csv").parents[2].glob("*/seed_0/history.csv")):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    plt.plot([int(row["epoch"]) for row in rows], [float(row["val_macro_f1"]) for row in rows],
             marker=".", label=path.parents[1].name)
plt.xlabel("epoch")
plt.ylabel("macro-F1, validation")
plt.legend(fontsize=8);""",
}

COMMAND = re.compile(r"(python|pip|export) ")


def main():
    """Write the notebook; returns its path."""
    import nbformat
    wanted = cells((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    notebook = nbformat.v4.new_notebook(metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"}})
    for k, (kind, source) in enumerate(wanted):
        make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        notebook.cells.append(make(source, id=f"cell-{k}"))
    before = nbformat.read(NOTEBOOK, 4).cells if NOTEBOOK.exists() else []
    code, before = ([cell for cell in of if cell.cell_type == "code"] for of in (notebook.cells, before))
    if [cell.source for cell in code] == [cell.source for cell in before]:
        for cell, old in zip(code, before):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    else:
        execute(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"written: {NOTEBOOK}")
    return NOTEBOOK


def cells(tutorial):
    """[(kind, source)] of the notebook's cells, kind "code" or "markdown". tutorial: its text."""
    found, figures = [("markdown", ABOUT)], dict(FIGURES)
    for is_block, text in blocks(tutorial):
        saved = re.search(r"Save this as `(\S+)`", found[-1][1].strip().splitlines()[-1]) if is_block else None
        if saved:
            file, _, text = text.partition("\n\n    python ")  # up to the command that runs it
            found.append(("code", f"%%writefile {saved[1]}\n{dedented(file)}"))
            text = f"    python {text}" if text else ""
        for part in re.split(r"\n\n+", text) if is_block else [text]:
            lines = dedented(part).splitlines()
            if not (is_block and all(map(COMMAND.match, lines))):
                add_text(found, part)
            elif lines and lines[0].startswith("pip "):
                found.append(("code", setup(lines)))
            else:
                for line in lines:
                    found.append(("code", run(line)))
                    found += [("code", figures.pop(words)) for words in list(figures) if words in line]
    if figures:
        raise ValueError(f"no command of the tutorial has the words {', '.join(figures)}")
    return found


def blocks(text):
    """(is_block, text) of the indented blocks of a Markdown text and of what is between them."""
    for part in re.split(r"(?m)((?:^    .*\n(?:\n+(?=    ))?)+)", text):
        if part.strip():
            yield part.startswith("    "), part.strip("\n")


def add_text(found, text):
    """Add `text` to the last cell, if that is of text, else as a new one."""
    if found[-1][0] == "markdown" and found[-1][1] != ABOUT:
        found[-1] = ("markdown", f"{found[-1][1]}\n\n{text}")
    else:
        found.append(("markdown", text))


def dedented(text):
    return re.sub(r"(?m)^    ", "", text)


def without_comment(line):
    return re.sub(r"\s+# .*$", "", line)


def setup(lines):
    """The source of the first cell: `pip install` and `export NAME=VALUE` of the tutorial, for Colab and elsewhere."""
    install, *exports = map(without_comment, lines)
    variables = [re.sub(r"export (\w+)=(\S+)", r'os.environ["\1"] = "\2"', line) for line in exports]
    return SETUP.replace("{install}", install.replace("install", "install -q")).replace(
        "{variables}", "\n".join(variables))


def run(line):
    """A command as the source of a cell."""
    return without_comment(line).replace("python ", "%run ", 1)


def execute(notebook):
    """Run a notebook in a copy of the clone, so that the cells have outputs. Raises where a cell fails."""
    import nbclient
    with tempfile.TemporaryDirectory() as folder:
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                capture_output=True, text=True, check=True).stdout
        for name in filter(lambda name: (ROOT / name).is_file(), listed.split("\0")):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, Path(folder, name))
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=1800,
                                resources={"metadata": {"path": str(Path(folder, "docs"))}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = joined(output for output in cell.outputs if "\r" not in output.get("text", ""))  # no bars
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = output.text.replace(f"{Path(folder).resolve()}{os.sep}", "")


def joined(outputs):
    """Outputs, in which texts of one stream that follow each other are one."""
    found = []
    for output in outputs:
        last = found[-1] if found else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    main()
