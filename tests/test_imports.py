"""Imports run one way, and what an edge box or a notebook needs runs without torch."""

import ast
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# The border: the first list imports with numpy, Pillow, PyYAML and tqdm alone; the second needs torch.
NUMPY_ONLY = ["kd.audit", "kd.board", "kd.bootstrap", "kd.bundle", "kd.cache",
              "kd.calibration", "kd.class_order", "kd.comparison", "kd.config", "kd.corruptions", "kd.dataset", "kd.environment",
              "kd.errors", "kd.evaluation", "kd.events", "kd.evidence", "kd.figures", "kd.figures_robustness", "kd.filters", "kd.foreign",
              "kd.image", "kd.latex", "kd.ledger", "kd.machine", "kd.metrics", "kd.model_comparison", "kd.noise", "kd.notes", "kd.onnx",
              "kd.operating", "kd.parity", "kd.pdf", "kd.plan", "kd.predictions", "kd.quantization", "kd.robustness",
              "kd.robustness_tables", "kd.rules", "kd.runs", "kd.splits", "kd.stages", "kd.suites", "kd.svg", "kd.tables", "kd.timing", "kd.workers",
              "registry", "benchmark", "evaluate", "predict", "report", "study",
              "kd.document", "kd.figures_quality", "kd.report_calibration", "kd.report_efficiency",
              "kd.report_findings", "kd.report_performance", "kd.report_robustness", "kd.report_students",
              "kd.report_study", "kd.sections", "kd.study_folder",
              "kd.report_boards", "kd.report_print",
              "kd.study_checks"]
TORCH = ["kd.augment", "kd.backends", "kd.checkpoint", "kd.convolution", "kd.corrupted", "kd.data", "kd.deployment",
         "kd.distributed", "kd.engine", "kd.export", "kd.external", "kd.losses", "kd.macs",
         "kd.models", "kd.objective", "kd.similarity", "kd.step", "kd.targets", "kd.training", "distill", "export",
         "robustness", "train_teacher"]
SMALL = {"numpy", "PIL", "yaml", "tqdm"}

SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
CORE = sorted((ROOT / "kd").glob("*.py"))
PLUGINS = sorted((ROOT / "registry").glob("*/*.py"))


def imports(path):
    """All modules that a file imports, inside functions as well: {"kd.runs", "numpy", ...}."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def tops(path):
    return {name.split(".")[0] for name in imports(path)}


def test_every_module_stands_on_one_side_of_the_border():
    modules = {f"kd.{path.stem}" for path in CORE if path.stem != "__init__"} | SCRIPTS | {"registry"}
    assert sorted(modules) == sorted(NUMPY_ONLY + TORCH)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_imports_no_plugin_and_no_script(path):
    assert not tops(path) & ({"registry"} | SCRIPTS)


def test_the_registry_imports_nothing_of_the_project():
    assert tops(ROOT / "registry" / "__init__.py") <= sys.stdlib_module_names


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_plugin_imports_the_core_and_the_registry_and_no_script(path):
    assert not tops(path) & SCRIPTS
    assert not any(name.startswith("registry.") and name != "registry.register" for name in imports(path))


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_takes_nothing_but_main_from_another(name):  # study.py reads each one's parser() as well
    tree, others = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8")), SCRIPTS & tops(ROOT / f"{name}.py")
    taken = {f"{node.value.id}.{node.attr}" for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in others}
    taken |= {f"{node.module}.{alias.name}" for node in ast.walk(tree)
              if isinstance(node, ast.ImportFrom) and node.module in SCRIPTS for alias in node.names}
    assert taken <= {f"{other}.main" for other in SCRIPTS}


WITHOUT = """
import importlib, sys

class Refuse:
    "As if nothing but the standard library, the project and four small packages were installed."
    allowed = set(sys.stdlib_module_names) | set(sys.argv[2].split())
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
for name in sys.argv[3:]:
    for loaded in [key for key in sys.modules if key.split(".")[0] in ("kd", "registry", "evaluate", "report")]:
        del sys.modules[loaded]  # each is imported alone
    try:
        importlib.import_module(name)
        print(name, "imports")
    except ImportError as error:
        print(name, "lacks", error.name.split(".")[0])
"""


def test_what_is_meant_to_be_free_of_torch_imports_without_it_and_the_rest_does_not():
    allowed = SMALL | SCRIPTS | {"kd", "registry", "_yaml"}
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(ROOT), " ".join(allowed), *NUMPY_ONLY, *TORCH],
                          capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} imports" for name in NUMPY_ONLY] + [f"{name} lacks torch" for name in TORCH]


@pytest.mark.slow
def test_an_environment_without_torch_imports_the_border_and_evaluates_predictions(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(*words):
        return subprocess.run([python, *map(str, words)], cwd=tmp_path, capture_output=True, text=True)

    installed = run("-m", "pip", "install", "--quiet", "numpy", "pillow", "pyyaml", "tqdm")
    assert installed.returncode == 0, installed.stderr
    assert run("-c", "import torch").returncode
    for name in NUMPY_ONLY:
        done = run("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}")
        assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "theirs.npz", y_true=rng.integers(0, 3, 60), logits=rng.normal(size=(60, 3)))
    done = run(ROOT / "evaluate.py", "theirs.npz", "--out", "results", "--replicates", 100)
    assert done.returncode == 0 and "macro F1" in done.stdout, done.stderr
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["split"]["test"]["images"] == 60
