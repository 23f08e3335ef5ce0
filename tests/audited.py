"""An honest study for tests of the audit, and the parts of which faults are made."""

import copy
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

import evaluate
import honest
from kd import metrics, perceptual_hash
from kd.audit import examine
from kd.evaluation import compare, protocol
from kd.files import read_csv, read_json, write_csv, write_json, write_npz
from kd.run_folder import Run, fingerprint

SETTINGS = protocol.Settings(replicates=100)
MODELS = {"teacher_a/seed_0": 3.5, "b_alone/seed_0": 2.2, "b_kd/seed_0": 2.6, "b_kd/seed_1": 2.6, "b_kd/seed_2": 2.6}
EVALUATED = {}


@pytest.fixture(autouse=True, scope="module")
def evaluated_once():
    """Most runs of a study are the same in all tests: what they evaluate to is computed once."""
    def evaluate_once(val, test, settings=protocol.Settings()):
        parts = [part and (part.labels.tobytes(), part.scores.tobytes(), str(part.groups), *part.class_names)
                 for part in (val, test)]
        key = repr((parts, settings))
        if key not in EVALUATED:
            EVALUATED[key] = evaluate_anew(val, test, settings)
        return copy.deepcopy(EVALUATED[key])

    evaluate_anew = protocol.evaluate
    with mock.patch.object(protocol, "evaluate", evaluate_once), mock.patch("os.fsync"):
        yield


@pytest.fixture(scope="module", name="template")
def honest_study(tmp_path_factory):
    """An honest study: a teacher, a baseline, and a student of three seeds, evaluated and compared."""
    root, images = tmp_path_factory.mktemp("honest") / "toy", (None, None)
    rng = np.random.default_rng(0)
    pictures = {part: rng.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
                for part, count in (("val", 150), ("test", 300), ("train", 7))}
    for name, skill in MODELS.items():
        images = val, test = honest.pair(rng, 300, images, skill=skill)
        teacher = name.startswith("teacher")
        options = {"epochs": 5, "split_seed": 0, "teacher": "runs/toy/teacher_a/seed_0" if "kd" in name else None}
        folder = honest.write(root / name, val, test, "teacher" if teacher else "student", seed=int(name[-1]),
                              options=options)
        write_split(folder, [row | {"perceptual_hash": looks} for row, looks in zip(read_csv(folder / "split.csv"), [
            looks for part in ("val", "test", "train") for looks in perceptual_hash.hashes(pictures[part])])])
    summarise(root)
    return root


def summarise(root, *names):
    """Evaluate the runs of these names, or all, and what stands over them."""
    folders = [root / name for name in names or MODELS]
    evaluated = {folder: evaluate.evaluate_run(folder, SETTINGS) for folder in folders}
    protocol.over_seeds(evaluated)
    if not names:
        compared = compare.compare(compare.models([str(root)], None), SETTINGS)
        write_csv(root / "comparison.csv", compare.table(compared))


@pytest.fixture(name="root")
def copied_study(template, tmp_path):
    """The folder of a copy of the study, to be changed."""
    shutil.copytree(template, tmp_path / "toy")
    return tmp_path / "toy"


def findings(root, notes=False):
    """{rule: texts} of what is more than a note, or of all."""
    texts = {}
    for finding in examine.audit_paths([root]):
        if notes or finding["severity"] != "note":
            texts.setdefault(finding["rule"], []).append(finding["saw"])
    return texts


# ---- parts of a fault

RUN = "b_kd/seed_0"


def edit(root, change, name=RUN):
    """Change metrics.json by hand."""
    path = root / name / "metrics.json"
    content = read_json(path)
    change(content)
    write_json(path, content)


def put(root, name, part, split="test"):
    """Write Predictions into a run, as a training would have written them."""
    write_npz(root / name / "predictions" / f"{split}.npz", ids=part.ids, labels=part.labels, groups=part.groups,
              logits=part.logits.astype(np.float32), class_names=np.array(part.class_names))


def evaluated_again(root, change, name=RUN, split="test"):
    """Change predictions, and evaluate as if nothing had happened."""
    run = Run(root / name)
    put(root, name, change(getattr(run, split)), split)
    summarise(root, name)


def rows_of(part, rows):
    names = "labels", "logits", "probabilities", "ids", "groups"
    return replace(part, **{name: getattr(part, name)[rows] for name in names})


def relabelled(part, labels):
    return replace(part, labels=labels)


def with_logits(part, logits):
    return replace(part, logits=logits, probabilities=metrics.softmax(logits))


def write_split(folder, rows, honest_fingerprint=True):
    """Write split.csv, and what environment.json states of it."""
    write_csv(folder / "split.csv", rows)
    environment = read_json(folder / "environment.json")
    if honest_fingerprint:
        columns = {key: [row[key] for row in rows] for key in ("id", "group", "label", "split", "sha256")}
        numbers = [environment["data"]["classes"].index(label) for label in columns["label"]]
        environment["data"].update(
            fingerprint=fingerprint(columns["id"], numbers, columns["sha256"]), images=len(rows),
            split=fingerprint(columns["id"], columns["group"], columns["split"]))
        write_json(folder / "environment.json", environment)


def answers(part):
    return part.probabilities.argmax(1)
