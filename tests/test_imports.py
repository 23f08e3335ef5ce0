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

CORE = sorted((ROOT / "kd").rglob("*.py"))
PLUGINS = sorted((ROOT / "registry").glob("*/*.py"))
SCRIPTS = {path.stem for path in ROOT.glob("[!_]*.py")}


def module(path):
    """kd/data/cache.py -> kd.data.cache"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def folder(name):
    """The room of a module of kd: kd.data.cache -> data, kd.files -> core."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "kd" / parts[1]).is_dir() else "core"


# Imports run one way: a folder may import those named here, and itself.
MAY_IMPORT = {
    "core": set(),
    "data": {"core"},
    "train": {"core", "data"},
    "edge": {"core", "data", "train"},
    "audit": {"core", "evaluation"},
    "evaluation": {"core"},
    "robustness": {"core", "data", "train", "edge", "evaluation"},
    "report": {"core", "audit", "evaluation", "robustness"},
    "study": {"core"},
}
ALSO = {("study", "kd.train.options")}  # a plan speaks the language of the command lines

# The border: these need torch; every other module of kd imports with numpy, Pillow, PyYAML and tqdm alone.
TORCH = {"kd.losses", "kd.objective", "kd.data.augment", "kd.data.batching", "kd.data.mixing",
         "kd.edge.checked_export", "kd.edge.convert", "kd.edge.executorch", "kd.edge.onnx_network", "kd.edge.qat",
         "kd.edge.torch_model", "kd.robustness.answers",
         *(module(path) for path in CORE if path.parent.name == "train" and path.stem not in ("__init__", "options"))}
NUMPY_ONLY = sorted({module(path) for path in CORE} - TORCH) + [
    "registry", "benchmark", "evaluate", "predict", "report", "study",
]
TORCH = sorted(TORCH) + ["distill", "export", "robustness", "train_teacher"]
SMALL = {"numpy", "PIL", "yaml", "tqdm"}


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
    assert sorted({module(path) for path in CORE} | SCRIPTS | {"registry"}) == sorted(NUMPY_ONLY + TORCH)


@pytest.mark.parametrize("path", CORE, ids=module)
def test_the_core_imports_no_plugin_and_no_script(path):
    assert not tops(path) & ({"registry"} | SCRIPTS)


@pytest.mark.parametrize("path", CORE, ids=module)
def test_imports_between_folders_run_one_way(path):
    home, known = folder(module(path)), {module(other) for other in CORE if other.stem != "__init__"}
    for name in imports(path) & known:
        assert folder(name) in {home, *MAY_IMPORT[home]} or (home, name) in ALSO, f"{module(path)} imports {name}"


def test_every_folder_has_its_place_in_the_order_and_says_in_a_sentence_what_it_does():
    folders = {path.name for path in (ROOT / "kd").iterdir() if path.is_dir() and not path.name.startswith("_")} - {
        "__pycache__"
    }
    assert folders | {"core"} == MAY_IMPORT.keys()
    for path in [path for path in CORE if path.name == "__init__.py"]:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


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
    assert done.stdout.splitlines() == [f"{name} imports" for name in NUMPY_ONLY] + [
        f"{name} lacks torch" for name in TORCH
    ]


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
