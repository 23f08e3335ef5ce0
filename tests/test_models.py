"""The trained model in the repository: the commands of its README, its figures, and that no photograph is in it."""

import hashlib
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "models" / "ham10000_lite0"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (python .*)$", README, re.MULTILINE)]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "predict.py"], ids=" ".join)
def test_the_model_classifies_and_checks_itself_as_its_readme_says(words):
    pytest.importorskip("onnxruntime")
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    if "--check" in words:
        assert "8 images: logits agree" in done.stdout and "11 files are as SHA256SUMS lists them" in done.stdout
    else:
        assert all(f"{word}\n" in done.stdout for word in words[2:]) and "nv" in done.stdout


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] not in ("predict.py", "models/make.py")],
                         ids=" ".join)
def test_the_commands_that_made_it_have_options_that_exist(words):
    importlib.import_module(words[0].removesuffix(".py")).parser().parse_args(words[1:])


def test_no_image_of_the_training_data_is_in_it():
    """HAM10000 is CC BY-NC: the images of the check are the pictures beside it, which are drawn."""
    onnx_model = pytest.importorskip("kd.onnx_model")
    pytest.importorskip("onnxruntime")
    model = onnx_model.Model(FOLDER / "model.int8.onnx", 1)
    pictures = sorted(FOLDER.glob("*.jpg"))
    images = np.load(FOLDER / "check.npz")["images"]
    assert len(pictures) == 8 and np.array_equal(images, [model.pixels(path) for path in pictures])
    known = {"README.md", "MODEL_CARD.md", "SHA256SUMS", "check.npz", "model.int8.onnx", *(p.name for p in pictures)}
    assert {path.name for path in FOLDER.iterdir()} == known


def test_it_is_small_and_names_no_machine():
    files = list(FOLDER.iterdir())
    assert sum(path.stat().st_size for path in files) < 4_500_000
    assert not any(re.search(rb"/(tmp|home|root|work|Users)/", path.read_bytes()) for path in files)


def test_the_figures_of_its_readme_are_those_of_its_card():
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name, words in (("macro_f1", "macro-F1 of"), ("accuracy", "accuracy of")):
        row = re.search(rf"^\| {name} \| (\S+) \| (\S+) to (\S+) \|$", card, re.MULTILINE)
        assert f"{words} {row[1]} [{row[2]}, {row[3]}]" in README.replace("\n", " ")
    changed = re.search(r"macro F1 differs by (\S+) \[(\S+), (\S+)\]", card)
    text = README.replace("\n", " ")
    assert f"{changed[1]} [{changed[2]}, +{changed[3].lstrip('+')}]" in text
    recall = re.search(r"^\| recall/mel \| (\S+) \| (\S+) to (\S+) \|$", card, re.MULTILINE)
    assert f"calls {recall[1]} [{recall[2]}, {recall[3]}]" in text
    figure = r"(\S+) \((\S+) to (\S+)\)"
    point = re.search(rf"^\| mel at .* sensitivity {figure}, specificity {figure}", card, re.MULTILINE)
    assert f"finds {point[1]} [{point[2]}, {point[3]}]" in text
    assert f"leaves {point[4]} [{point[5]}, {point[6]}]" in text
    results = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    for others in ("teacher has 0.720 [0.677, 0.768]", "without a teacher 0.687 [0.644, 0.735]"):
        assert others in text and others.split("has ")[-1].split("teacher ")[-1].replace("0.", ".") in results
    listed = dict(line.split("  ")[::-1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert listed["MODEL_CARD.md"] == hashlib.sha256(card.encode()).hexdigest()
