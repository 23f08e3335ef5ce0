"""The report shows the numbers of the run folders, all of them, and nothing else."""

import html.parser
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import numpy as np
import pytest

import report
from kd import audit, figures, runs
from kd.errors import UserError

CLASSES = ["mel", "nv", "df"]
COMPILE = jinja2.Environment.compile
HOSTILE = ['<script>alert("1")</script>', "$\\frac12$ & 'co' \x1b", "😀" + "x" * 299]


# ---- a small study


def write_run(folder, names=CLASSES, seed=0, role="student", macro_f1=None, synthetic=False, formula="ce",
              **config):
    rng = np.random.default_rng(sum(map(ord, str(folder.parent.name))) + seed)
    count = len(names)
    labels = np.arange(12) % count
    logits = rng.normal(size=(12, count)).astype(np.float32)
    logits[np.arange(12), labels] += 1
    ids = np.array([f"img_{i}" for i in range(12)])
    for part in ("val", "test"):
        runs.write_npz(folder / "predictions" / f"{part}.npz", ids=ids if part == "test" else np.char.add("val_", ids),
                       labels=labels, logits=logits, groups=np.array([f"{part}_{i // 2}" for i in range(12)]),
                       class_names=np.array(names))
    runs.write_npz(folder / "samples.npz", ids=ids[:4],
                   images=np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))

    def metric(value):
        return {"value": value, "lo": value * rng.uniform(.7, .95), "hi": min(1, value * rng.uniform(1.05, 1.2)),
                "replicates": 2000, "undefined": 0}

    predicted = logits.argmax(axis=1)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (labels, predicted), 1)
    test = {name: metric(rng.uniform(.3, .8)) for name in
            ["weighted_f1", "balanced_accuracy", "macro_auroc", *(f"f1/{name}" for name in names)]}
    test["accuracy"] = metric(float(np.mean(predicted == labels)))
    test["macro_f1"] = metric(macro_f1 or rng.uniform(.3, .8))
    majority = {name: metric(value) for name, value in
                {"accuracy": .3345678, "macro_f1": .1678912, "balanced_accuracy": .3333333}.items()}
    runs.write_json(folder / "metrics.json", {
        "conventions": {"level": .95, "interval": "percentile", "replicates": 2000, "clusters": "group",
                        "n_clusters": 6, "seed": 0}, "class_names": list(names),
        "split": {}, "majority": majority, "val": {}, "test": test, "confusion": confusion.tolist()})
    runs.write_csv(folder / "history.csv", [
        {"epoch": epoch, "lr": .001, "loss": rng.uniform(1, 2) / epoch, "val_loss": rng.uniform(1, 2), "val_accuracy": .5,
         "val_macro_f1": [.2, .4, .4, .3][epoch - 1], "seconds": 20.25} for epoch in (1, 2, 3, 4)])
    runs.write_yaml(folder / "config.yaml", {"data": "toy", "size": 8, "epochs": 4, "seeds": [seed], **config})
    runs.write_json(folder / "environment.json", {
        "python": "3.12.1", "cpu": "a CPU", "threads": 2, "git": "abc1234", "role": role, "formula": formula,
        "parameters": 12345, "started": f"2025-01-0{seed + 1}",
        "data": {"name": "toy", "synthetic": synthetic, "images": 36, "classes": list(names),
                 "fingerprint": "f1f2f3"}})
    runs.write_csv(folder / "split.csv", [
        {"id": f"{part}_{i}", "group": f"{part}_{i // 2}", "label": names[i % count], "split": part, "sha256": f"{part}{i}"}
        for part in ("train", "val", "test") for i in range(12)])


def write_study(root, **options):
    write_run(root / "teacher_big" / "seed_0", role="teacher", macro_f1=.9, teacher="big", **options)
    for seed in (0, 1):
        write_run(root / "small_alone" / f"seed_{seed}", seed=seed, student=["small"], teacher=None, alpha=1.0,
                  **options)
        write_run(root / "small_kd" / f"seed_{seed}", seed=seed, student=["small"], alpha=.5,
                  formula="0.5 * ce + 0.5 * kd(T=4)", **options)
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(run folder, page) of a study in which nothing is wrong. Not to be changed."""
    root = write_study(tmp_path_factory.mktemp("runs") / "toy_8px")
    return root, Page(report.main([str(root)]).read_text(encoding="utf-8"))


@pytest.fixture
def quick(monkeypatch):
    """Drawings are left out where a test is not about them, and the template is compiled once."""
    for name in ("forest", "confusion", "curves"):
        monkeypatch.setattr(figures, name, lambda *args, **options: "<svg></svg>")
    monkeypatch.setattr(jinja2.Environment, "compile", compile_once)


def compile_once(environment, source, name=None, filename=None, code={}):
    if source not in code:
        code[source] = COMPILE(environment, source, name, filename)
    return code[source]


class Page(html.parser.HTMLParser):
    """A page taken apart: tags with attributes, text, and the numbers of marked table rows."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.text, self.rows = text, [], "", {}
        self.row = self.cell = self.number = None
        self.shown = []  # (value, how it is printed)
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "tr":
            name = attributes.get("data-run", attributes.get("data-class"))
            self.row = self.rows.setdefault(name, {}) if name else None
        if "data-metric" in attributes and self.row is not None:
            self.cell = self.row.setdefault(attributes["data-metric"], [])
        if tag == "data":
            self.number = float(attributes["value"])
            if self.cell is not None:
                self.cell.append(self.number)

    def handle_data(self, data):
        self.text += data
        if self.number is not None:
            self.shown.append((self.number, data))

    def handle_endtag(self, tag):
        self.number = None if tag == "data" else self.number
        self.cell = None if tag in ("td", "tr") else self.cell
        self.text += " " if tag in ("p", "td", "th", "li", "text", "h1", "h2", "h3", "dt", "dd", "div") else ""

    def drawings(self):
        return [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", self.source, re.S)]


def words(drawing):
    return ["".join(text.itertext()) for text in drawing.iter("text")]


# ---- numbers


def test_every_metric_and_interval_is_that_of_the_run(study):
    root, page = study
    for run in ("teacher_big/seed_0", "small_alone/seed_0", "small_alone/seed_1", "small_kd/seed_1"):
        held = runs.read_json(root / run / "metrics.json")["test"]
        for name in report.METRICS:
            assert page.rows[run][name] == [held[name][key] for key in ("value", "lo", "hi")]
    majority = runs.read_json(root / "teacher_big/seed_0/metrics.json")["majority"]
    assert page.rows["majority"]["macro_f1"] == [majority["macro_f1"][k] for k in ("value", "lo", "hi")]
    assert page.rows["majority"]["weighted_f1"] == []


def test_printed_numbers_are_the_values_rounded(study):
    _, page = study
    fractions = [(value, text) for value, text in page.shown if re.fullmatch(r"\d\.\d+", text)]
    assert len(fractions) > 100
    assert all(text == f"{value:.3f}" for value, text in fractions)


def test_mean_of_seeds_has_no_interval_and_one_seed_no_mean(study):
    root, page = study
    values = [runs.read_json(root / f"small_kd/seed_{seed}/metrics.json")["test"]["macro_f1"]["value"]
              for seed in (0, 1)]
    assert page.rows["small_kd/mean"]["macro_f1"] == [pytest.approx(np.mean(values))]
    assert "mean of 2 seeds" in page.text
    assert "teacher_big/mean" not in page.rows


def test_training_time_epochs_and_first_best_epoch_are_those_of_the_history(study):
    row = study[1].rows["small_kd/seed_1"]
    assert (row["seconds"], row["epochs"], row["best"]) == ([81.0], [4], [2])
    assert "1 min 21 s" in study[1].text


def test_what_a_run_is_stands_in_its_files_and_else_in_its_name(tmp_path):
    write_run(tmp_path / "s/mine/seed_0", teacher=None)
    write_run(tmp_path / "s/yours/seed_0", teacher="runs/s/teacher_big")
    write_run(tmp_path / "s/big/seed_0", role="teacher", teacher="big")
    write_run(tmp_path / "s/teacher_other/seed_0", role=None)
    write_run(tmp_path / "s/other_alone/seed_0", role=None)
    assert {run.model: run.kind for run in report.read_study(tmp_path / "s").runs} == {
        "mine": "alone", "yours": "student", "big": "teacher", "teacher_other": "teacher", "other_alone": "alone"}


@pytest.mark.parametrize("seconds, words", [(48.4, "48 s"), (59.7, "1 min 00 s"), (3599.8, "1 h 00 min"),
                                            (7530, "2 h 06 min")])
def test_durations_read_as_people_say_them(seconds, words):
    assert report.duration(seconds) == words


def test_class_f1_and_support_are_those_of_the_first_seed(study):
    root, page = study
    models = ("teacher_big", "small_alone", "small_kd")
    held = [runs.read_json(root / model / "seed_0/metrics.json")["test"] for model in models]
    for name in CLASSES:
        assert page.rows[name]["f1"] == [h[f"f1/{name}"][key] for h in held for key in ("value", "lo", "hi")]
    assert re.search(r"mel 4 ", page.text)


def test_confusion_matrices_show_the_counts(study):
    root, page = study
    shown = [d for d in page.drawings() if d.get("aria-label").startswith("Confusion")]
    assert len(shown) == 3
    counts = np.array(runs.read_json(root / "teacher_big/seed_0/metrics.json")["confusion"])
    printed = sorted(int(word) for word in words(shown[0]) if word.isdigit())
    assert printed == sorted(counts[counts > 0].tolist())


def test_forest_names_every_run_with_its_value_and_the_majority_rule(study):
    root, page = study
    wide, narrow = [d for d in page.drawings() if d.get("aria-label").startswith("Macro-F1")]
    for run, name in (("teacher_big/seed_0", "teacher_big"), ("small_kd/seed_1", "small_kd · seed 1")):
        value = runs.read_json(root / run / "metrics.json")["test"]["macro_f1"]["value"]
        for drawing in (wide, narrow):
            assert f"{value:.3f}" in words(drawing) and name in words(drawing)
            assert "majority rule 0.168" in words(drawing)


def test_sample_answers_are_the_argmax_of_the_logits_of_that_image(study):
    root, page = study
    alt = {tag["alt"].split(",")[0].split()[-1]: tag["alt"] for name, tag in page.tags if name == "img"}
    assert len(alt) == 4
    for model in ("teacher_big", "small_alone", "small_kd"):
        test = runs.read_npz(root / model / "seed_0/predictions/test.npz")
        for i in range(4):
            true, answer = CLASSES[test["labels"][i]], CLASSES[test["logits"][i].argmax()]
            assert f"true class {true}." in alt[f"img_{i}"]
            assert f"{model}: {answer} ({'right' if true == answer else 'wrong'})" in alt[f"img_{i}"]
    assert page.source.count("✗</span>") == " ".join(alt.values()).count("(wrong)") > 0


def test_undefined_numbers_are_called_undefined(tmp_path, quick):
    root = write_study(tmp_path / "toy")
    path = root / "small_kd/seed_0/metrics.json"
    held = runs.read_json(path)
    held["test"]["macro_auroc"] = {"value": None, "lo": None, "hi": None, "replicates": 0, "undefined": 2000}
    runs.write_json(path, held)
    page = Page(report.main([str(root)]).read_text(encoding="utf-8"))
    assert page.rows["small_kd/seed_0"]["macro_auroc"] == page.rows["small_kd/mean"]["macro_auroc"] == []
    assert "Macro AUROC 0 to 2000." in page.text


# ---- what is said


def test_title_data_splits_and_methods_are_stated(study):
    _, page = study
    for words_ in ("toy_8px", "36 images of 18 lesions or patients in 3 classes", "12 train, 12 validation, 12 test",
                   "8 × 8 px", "Not a medical device", "0.5 * ce + 0.5 * kd(T=4)", "f1f2f3", "abc1234",
                   "percentile", "Options that differ", "12,345"):
        assert words_ in page.text, words_
    assert re.search(r"python distill\.py --config \S*/small_kd/seed_1/config\.yaml", page.text)
    assert re.search(r"python train_teacher\.py --config \S*/teacher_big/seed_0/config\.yaml", page.text)
    assert [row for row in page.rows][0] == "teacher_big/seed_0"


def test_synthetic_data_are_called_so_and_real_data_are_not(study, tmp_path, quick):
    drawn = write_study(tmp_path / "drawn", synthetic=True)
    assert "Synthetic data." in Page(report.main([str(drawn)]).read_text(encoding="utf-8")).text
    assert "ynthetic data" not in study[1].text


def test_a_weak_teacher_bars_any_conclusion(study, tmp_path, quick):
    root = write_study(tmp_path / "toy")
    for seed in (0, 1):
        write_run(root / "small_alone" / f"seed_{seed}", seed=seed, student=["small"], macro_f1=.9)
    text = Page(report.main([str(root)]).read_text(encoding="utf-8")).text
    assert "no conclusion about distillation follows" in text  # equal is not above
    assert "no conclusion" not in study[1].text


def test_a_student_without_its_control_is_named(study, tmp_path, quick):
    root = write_study(tmp_path / "toy")
    write_run(root / "tiny_kd" / "seed_0", student=["tiny"])
    text = Page(report.main([str(root)]).read_text(encoding="utf-8")).text
    assert "No tiny was trained without a teacher" in text and "No small was" not in text
    assert re.search(r"distill\.py --config \S+/tiny_kd/seed_0/config\.yaml --alpha 1 --beta 0 --name tiny_alone",
                     text)
    assert "trained without a teacher here" not in study[1].text


def test_runs_tested_on_different_images_are_not_compared(study, tmp_path, quick):
    root = write_study(tmp_path / "toy")
    path = root / "small_kd/seed_0/predictions/test.npz"
    held = runs.read_npz(path)
    runs.write_npz(path, **{**held, "ids": np.array([f"other_{i}" for i in range(12)])})
    assert "must not be compared" in Page(report.main([str(root)]).read_text(encoding="utf-8")).text
    assert "must not be compared" not in study[1].text


# ---- findings of the audit


def findings(page):
    """{(severity, rule): text} of the page's findings, in their order."""
    parts = re.findall(r'<div class="finding" data-severity="(.*?)" data-rule="(.*?)">(.*?)</div>', page.source, re.S)
    return {(severity, rule): Page(text).text for severity, rule, text in parts}


def test_findings_stand_above_every_figure_worst_first_with_their_severity_in_words(tmp_path, quick):
    root = write_study(tmp_path / "toy")
    one, other = (root / f"small_kd/seed_{seed}" for seed in (0, 1))
    (other / "history.csv").write_bytes((one / "history.csv").read_bytes())
    (one / "split.csv").unlink()
    page = Page(report.main([str(root)]).read_text(encoding="utf-8"))
    found = findings(page)
    assert list(found)[0] == ("error", "same-curve") and ("note", "split-not-seen") in found
    ranks = [audit.SEVERITIES.index(severity) for severity, _ in found]
    assert ranks == sorted(ranks)
    for (severity, rule), text in found.items():
        assert text.startswith(f"{severity} {rule}") and "What to do:" in text
    assert "small_kd/seed_0, small_kd/seed_1 share the curve" in found["error", "same-curve"]
    assert page.source.index('id="findings"') < min(map(page.source.index, ("<table", "<svg", "<nav", 'id="performance"')))
    told = audit.study([path.parents[1] for path in sorted(root.rglob("predictions/test.npz"))])
    assert {(f["severity"], f["rule"]) for f in told} == set(found)


def test_the_page_counts_findings_and_names_the_rules_that_were_held(study, tmp_path, quick):
    root, page = study
    held = audit.examine(audit.gather([path.parents[1] for path in root.rglob("predictions/test.npz")]))[1]
    assert f"{len(held)} of {len(audit.RULES)} rules could be held against these runs: {', '.join(held)}." in page.text
    write_run(tmp_path / "toy/a/seed_0")
    for name in ("metrics.json", "history.csv"):
        (tmp_path / "toy/a/seed_0" / name).unlink()
    held = runs.read_npz(tmp_path / "toy/a/seed_0/predictions/test.npz")
    logits = held["logits"] + np.eye(3)[held["labels"]]
    runs.write_npz(tmp_path / "toy/a/seed_0/predictions/test.npz", **{**held, "logits": logits})
    page = Page(report.main([str(tmp_path / "toy")]).read_text(encoding="utf-8"))
    assert not findings(page) and "Audit: nothing found" in page.text and "shared-by-splits" in page.text


def test_findings_of_tables_beside_the_runs_are_shown_as_text(tmp_path, quick):
    write_run(tmp_path / "toy/a/seed_0")
    (tmp_path / "toy/operating_points.csv").write_text("model,tau\n<b>x</b>,0.0\n", encoding="utf-8")
    page = Page(report.main([str(tmp_path / "toy")]).read_text(encoding="utf-8"))
    assert "<b>x</b>: tau is 0" in findings(page)["error", "idle-threshold"]
    assert "<b>x" not in page.source


# ---- what is wrong with the runs


def test_missing_stale_broken_and_unfinished_runs_are_named_and_the_rest_is_shown(tmp_path, quick, capsys):
    root = write_study(tmp_path / "toy")
    (root / "small_kd/seed_0/metrics.json").unlink()
    (root / "small_kd/seed_1/history.csv").write_bytes(b"epoch,loss\n\xff\xfe")
    held = runs.read_json(root / "small_alone/seed_1/metrics.json")
    held["test"]["accuracy"]["value"] -= .05
    runs.write_json(root / "small_alone/seed_1/metrics.json", held)
    runs.write_yaml(root / "small_kd_at/seed_0/config.yaml", {"role": "student"})
    page = Page(report.main([str(root)]).read_text(encoding="utf-8"))
    said = page.text.split("Performance on the test split")[0]
    for words_ in ("small_kd/seed_0: not evaluated", "python evaluate.py", "small_kd/seed_1: broken: cannot read",
                   "small_alone/seed_1: metrics.json does not belong", "small_kd_at/seed_0: not finished"):
        assert words_ in said, words_
    assert "macro_f1" not in page.rows["small_kd/seed_0"] and "macro_f1" not in page.rows["small_alone/seed_1"]
    assert "small_kd/seed_1" not in page.rows and "small_alone/mean" not in page.rows
    assert page.rows["teacher_big/seed_0"]["macro_f1"][0] == .9
    assert len(capsys.readouterr().out.splitlines()) == 5  # four problems and the page


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "history.csv", "metrics.json", "split.csv",
                                  "samples.npz", "predictions/test.npz"])
def test_no_damaged_file_stops_the_report(tmp_path, quick, name):
    write_run(tmp_path / "toy/a/seed_0")
    write_run(tmp_path / "toy/b/seed_0")
    for garbage in (b"", b"\x00\xff\xfe", b"[]", b"{}", b"a: [", b'{"test": 3}', b"epoch\n1\n",
                    b"epoch,loss,val_macro_f1,seconds\n,1,1,1\n", b"epoch,loss,val_macro_f1,seconds\n1,x,1,1\n",
                    b'{"test": {"accuracy": {"value": "x"}}, "data": 3}', b"group,label,split\n1\n",
                    b'{"test": {}, "confusion": [[1], [1, 2]]}', b'{"test": {}, "conventions": {"level": "x"}}',
                    b'{"test": {}, "conventions": {"a": [1], "b": {"c": 2}}}'):
        (tmp_path / "toy/a/seed_0" / name).write_bytes(garbage)
        page = Page(report.main([str(tmp_path / "toy")]).read_text(encoding="utf-8"))
        assert len(page.rows["b/seed_0"]["macro_f1"]) == 3
        if name in ("samples.npz", "predictions/test.npz"):
            assert "a/seed_0: broken" in page.text and "a/seed_0" not in page.rows


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "history.csv", "metrics.json", "split.csv",
                                  "samples.npz", "predictions/val.npz"])
def test_a_file_that_is_not_there_is_done_without(tmp_path, quick, name):
    write_run(tmp_path / "toy/a/seed_0")
    (tmp_path / "toy/a/seed_0" / name).unlink()
    page = Page(report.main([str(tmp_path / "toy")]).read_text(encoding="utf-8"))
    assert ("macro_f1" in page.rows["a/seed_0"]) == (name != "metrics.json")


def test_a_folder_without_a_study_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "one/a/seed_0")
    write_run(tmp_path / "two/a/seed_0")
    for folder, why in (("nowhere", "no such folder"), ("empty", "no finished run"), ("", "holds 2 studies: one, two")):
        with pytest.raises(UserError, match=why) as caught:
            report.main([str(tmp_path / folder)])
        assert "\n" not in caught.value.message
    (tmp_path / "one/a/seed_0/predictions/test.npz").write_bytes(b"")
    with pytest.raises(UserError, match="no readable run"):
        report.main([str(tmp_path / "one")])
    assert not list(tmp_path.rglob("report.html"))


# ---- the page


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(study):
    _, page = study
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:image/png;base64,")), value
    assert "url(http" not in page.source and "@import" not in page.source
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'")


def test_ids_on_the_page_are_unique_and_references_resolve(study):
    _, page = study
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', page.source))
    assert used and used <= set(ids)


def test_every_picture_has_words_for_those_who_cannot_see_it(study):
    _, page = study
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]


def test_colours_of_drawings_follow_the_page(study):
    _, page = study
    assert figures.LIGHT.keys() == figures.DARK.keys()
    assert len(set(figures.LIGHT.values())) == len(figures.LIGHT)  # a colour stands for one role
    for drawing in page.drawings():
        for element in drawing.iter():
            for colour in re.findall(r"#[0-9a-f]{6}", element.get("style", "").replace("clip-path", "")):
                assert f", {colour})" in element.get("style"), element.get("style")


def test_hostile_names_are_shown_as_text(tmp_path):
    name, tag = ("<u>$x$ & 'co'", "<i>") if sys.platform != "win32" else ("$x$ & 'co'", "")
    root = tmp_path / name
    for model in ("teacher_$a$", f"{tag}small_kd"):
        write_run(root / model / "seed_0", names=HOSTILE, formula="</code><script>x</script>", note="<img src=x>")
    page = Page(report.main([str(root)]).read_text(encoding="utf-8"))
    assert not {"script", "u", "i"} & {tag for tag, _ in page.tags}
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.tags if tag == "img")
    assert name in page.text and HOSTILE[0] in page.text and HOSTILE[2] in page.text
    labels = [word for drawing in page.drawings() for word in words(drawing)]
    assert '<script>alert("1"…' in labels and "$\\frac12$ & 'co'" in labels
    assert "teacher_$a$" in labels
    assert max(map(len, labels)) <= 60


def test_the_same_runs_give_the_same_page_and_nothing_else_is_written(tmp_path):
    root = write_study(tmp_path / "toy")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    first = report.main([str(root), "--out", str(tmp_path / "a")])
    second = report.main([str(root), "--out", str(tmp_path / "b")])
    assert first == tmp_path / "a" / "report.html" and first.read_bytes() == second.read_bytes()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["report.html"]


def test_page_path_is_returned_and_printed(tmp_path, quick, capsys):
    write_run(tmp_path / "toy/a/seed_0")
    path = report.main([str(tmp_path / "toy")])
    assert path == tmp_path / "toy" / "report.html" and path.is_file()
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {path}"


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_its_extra_and_writes_nothing(tmp_path, monkeypatch, package):
    write_run(tmp_path / "toy/a/seed_0")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=package) as caught:
        report.main([str(tmp_path / "toy")])
    assert caught.value.hint == 'pip install -e ".[report]"'
    assert not (tmp_path / "toy/report.html").exists()


def test_the_report_needs_no_torch_and_leaves_matplotlib_as_it_was(tmp_path):
    write_run(tmp_path / "toy/a/seed_0")
    code = ("import sys; sys.modules['torch'] = None; import matplotlib as m; m.rcParams['text.usetex'] = True; "
            "import report; report.main(sys.argv[1:]); assert m.rcParams['text.usetex']; "
            "assert 'matplotlib.pyplot' not in sys.modules")
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path / "toy")],
                          cwd=Path(report.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- drawings


def test_curves_are_drawn_of_one_epoch_of_nan_and_of_many_seeds():
    nan, inf = float("nan"), float("inf")
    one = figures.curves([("seed 0", [1], [2.], [.3], 0)], "teacher", alt="one")
    lost = figures.curves([("seed 0", [1, 2], [nan, inf], [nan, nan], None)], "student", alt="lost")
    many = figures.curves([(f"seed {i}", [1, 2], [2, 1], [.1, .2], 1) for i in range(9)], "alone", 1, 2, alt="many")
    assert "epoch" in words(ElementTree.fromstring(one)) and "epoch" in words(ElementTree.fromstring(lost))
    assert {f"seed {i}" for i in range(9)} <= set(words(ElementTree.fromstring(many)))


def test_a_forest_of_undefined_values_is_drawn():
    nan = float("nan")
    drawing = figures.forest([("a", "student", nan, nan, nan)], alt="nothing")
    assert "undefined" in words(ElementTree.fromstring(drawing))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_confusion_matrices_of_any_number_of_classes_are_drawn(count):
    matrix = np.diag(np.arange(1, count + 1))
    drawn = words(ElementTree.fromstring(figures.confusion(matrix, [f"c{i}" for i in range(count)], alt="m")))
    assert f"c{count - 1}" in drawn and ("1" in drawn) == (count <= 15)


def test_labels_stand_apart_in_order_and_move_no_more_than_they_must():
    assert figures._apart([.1, .5], .1) == [.1, .5]
    assert figures._apart([.5, .5], .1) == pytest.approx([.45, .55])
    heights = figures._apart([.1, .12, .13, .9], .1)
    assert np.diff(heights).min() >= .1 - 1e-9 and heights[-1] == .9
    assert np.mean(heights[:3]) == pytest.approx(np.mean([.1, .12, .13]))


def test_thumbnails_hold_the_pixels_and_shrink_what_is_large():
    import base64
    import io
    from PIL import Image

    def opened(uri):
        return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    small = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(figures.thumbnail(small))), small)
    assert opened(figures.thumbnail(np.zeros((400, 200, 3), np.uint8), 192)).size == (96, 192)
