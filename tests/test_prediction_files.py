"""Predictions as people save them are read, whatever the file; what cannot be told is asked in one line."""

import contextlib
import io

import numpy as np
import pytest

import evaluate
from kd import metrics, prediction_files
from kd.errors import UserError
from kd.predictions import of_files, read
from kd.score_kinds import KINDS

NAMES = ["nv", "mel", "b c"]
N = 60
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % 3
LOGITS = np.round(2 * RNG.normal(size=(N, 3)) + 2 * np.eye(3)[LABELS], 4)
P = metrics.softmax(LOGITS)
SIGMOID = 1 / (1 + np.exp(-LOGITS))
IDS = [f"img_{k:03}" for k in range(N)]
TWO = LABELS % 2
ONE = P[:, 1]  # scores of the second of two classes


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def table(path, columns, separator=",", encoding="utf-8", decimal="."):
    """A CSV of {column: values}; numbers have 6 decimals."""
    def text(cell):
        return f"{cell:.6f}".replace(".", decimal) if isinstance(cell, float) else str(cell)

    rows = [list(columns), *zip(*(list(values) for values in columns.values()))]
    path.write_bytes("".join(separator.join(map(text, row)) + "\r\n" for row in rows).encode(encoding))
    return path


def per_class(values, pattern="p_{}", names=NAMES):
    return {pattern.format(name): values[:, k].tolist() for k, name in enumerate(names)}


def evaluated(path, *options):
    """What evaluate.py prints of a file."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        evaluate.main([*map(str, (path, *options)), "--replicates", "100"])
    return out.getvalue()


def refused(path, *options):
    """The UserError, one line, of a file that is not evaluated."""
    with pytest.raises(UserError) as caught:
        evaluated(path, *options)
    assert "\n" not in caught.value.message and caught.value.hint
    return str(caught.value)


def same(path, probabilities=P, labels=LABELS, tolerance=1e-4, **how):
    found = read(path, **how)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.probabilities, probabilities, atol=tolerance)
    return found


# ---- what scores are


@pytest.mark.parametrize("name", ["logits", "y_prob", "scores", "outputs", "preds", "y_pred", "probs", "predictions"])
@pytest.mark.parametrize("scores, probabilities, words", [
    (LOGITS, P, "logits"), (P, P, "probabilities"), (100 * P, P, "percent"), (np.log(P), P, "log-probabilities"),
    (SIGMOID, SIGMOID / SIGMOID.sum(1, keepdims=True), "sigmoid"), (5 * P, P, "sum to 5"),
    (np.round(100 * P, 1), P, "percent"), (np.round(P, 3), P, ""), (LOGITS + 9, P, "logits"),
], ids=["logits", "probabilities", "percent", "log", "sigmoid", "sums of folds", "rounded percent", "rounded",
        "positive logits"])
def test_what_scores_are_is_told_by_looking_whatever_their_name(tmp_path, name, scores, probabilities, words):
    path = npz(tmp_path / "x.npz", labels=LABELS, **{name: scores})
    if name == "logits" and words == "sigmoid":
        assert "--scores logits or --scores sigmoid" in refused(path)
        return
    found = same(path, probabilities, tolerance=2e-3)
    assert (found.probabilities.argmax(1) == scores.argmax(1)).all()
    plain = {"logits": "logits", "y_prob": "probabilities", "probs": "probabilities"}.get(name)
    assert words in found.note or words == plain
    if words != plain and words:
        assert found.note in evaluated(path)


def test_sigmoids_keep_the_order_of_the_classes_in_each_image(tmp_path):
    near = np.where(SIGMOID > .5, 1 - 1e-12 * RNG.random(SIGMOID.shape), SIGMOID)
    found = read(npz(tmp_path / "x.npz", labels=LABELS, y_prob=near))
    assert (np.argsort(found.probabilities, 1, "stable") == np.argsort(near, 1, "stable")).all()


@pytest.mark.parametrize("scores, kinds", [
    (100 * SIGMOID, ("logits", "percent")), (np.round(LOGITS + 8), ("logits", "percent")),
    (np.where(np.arange(3) == 0, P * .8, P)[:1], ("logits", "sigmoid")),
], ids=["sigmoids in percent", "whole numbers", "one image"])
def test_what_cannot_be_told_is_asked_and_the_answer_is_taken(tmp_path, scores, kinds):
    path = npz(tmp_path / "x.npz", labels=LABELS[:len(scores)], scores=scores)
    error = refused(path)
    assert "cannot be told" in error
    for kind in kinds:
        assert f"--scores {kind}" in error
        assert "as --scores says" in evaluated(path, "--scores", kind) or kind == "logits"
    assert read(path, scores="logits").logits is not None


@pytest.mark.parametrize("kind, scores", [
    ("logits", P), ("logits", 100 * P), ("probabilities", LOGITS), ("probabilities", SIGMOID), ("percent", P),
    ("percent", LOGITS), ("sigmoid", 100 * P), ("sigmoid", LOGITS), ("log-probabilities", LOGITS),
    ("log-probabilities", P), ("probabilities", 200 * SIGMOID)])
def test_an_answer_that_the_numbers_contradict_is_refused_and_looking_leads_out(tmp_path, kind, scores):
    path = npz(tmp_path / "x.npz", labels=LABELS, y_prob=scores)
    assert f"--scores {kind}" in refused(path, "--scores", kind)


def test_a_few_rows_that_do_not_sum_to_one_are_damage(tmp_path):
    damaged = P.copy()
    damaged[7] *= .8
    error = refused(npz(tmp_path / "x.npz", labels=LABELS, y_prob=damaged))
    assert "1 of 60 images do not sum to 1 (image 7: 0.8), as the others do" in error
    assert "sigmoid" in evaluated(tmp_path / "x.npz", "--scores", "sigmoid")


@pytest.mark.parametrize("scores, kind, one", [
    (ONE, None, ONE), (ONE[:, None], None, ONE), (np.log(ONE / (1 - ONE)), None, ONE), (100 * ONE, "percent", ONE),
    (ONE, "sigmoid", ONE), (np.log(ONE), "log-probabilities", ONE)])
def test_one_score_an_image_is_of_the_second_of_two_classes(tmp_path, scores, kind, one):
    path = npz(tmp_path / "x.npz", y_true=TWO, y_score=scores)
    found = same(path, np.stack([1 - one, one], 1), TWO, scores=kind)
    assert "class 1" in found.note
    if kind in ("percent", "log-probabilities"):
        assert "cannot be told" in refused(path) and f"--scores {kind}" in refused(path)


# ---- labels


@pytest.mark.parametrize("labels", [
    LABELS, LABELS[:, None], np.eye(3)[LABELS], np.eye(3, dtype=int)[LABELS], np.eye(3, dtype=bool)[LABELS],
    LABELS.astype(float), LABELS.astype(str), np.array(NAMES)[LABELS], np.array(["NV", "Mel", "B_C"])[LABELS],
    np.array(NAMES)[LABELS][:, None], np.array(NAMES).astype("S")[LABELS], LABELS.astype(np.int8),
])
@pytest.mark.parametrize("name", ["labels", "y_true", "targets", "y", "gt", "Y_True", "label"])
def test_labels_are_numbers_names_or_one_hot(tmp_path, labels, name):
    same(npz(tmp_path / "x.npz", logits=LOGITS, class_names=np.array(NAMES), **{name: labels}))


@pytest.mark.parametrize("arrays, words", [
    (dict(labels=np.ones((N, 3), int)), "multi-label"), (dict(labels=np.zeros((N, 3), int)), "no class in 60"),
    (dict(labels=np.eye(4)[LABELS]), "one-hot of 4 classes; logits has 3"),
    (dict(labels=P), "other numbers than 0 and 1"),
    (dict(labels=np.zeros((N, 3, 2))), "shape"), (dict(labels=np.array(["x"] * N)), "nothing says which class"),
    (dict(labels=np.array(["x"] * N), class_names=np.array(NAMES)), "no name of a class"),
    (dict(logits=np.zeros((N, 3, 4, 4))), "segmentation"), (dict(labels=LABELS, y_true=(LABELS + 1) % 3), "differ"),
    (dict(logits=LOGITS[:50]), r"[60, C] is needed"), (dict(labels=np.append(LABELS[1:], 3)), "go from 0 to 3"),
])
def test_what_is_no_single_label_is_one_line(tmp_path, arrays, words):
    path = npz(tmp_path / "x.npz", **{"labels": LABELS, "logits": LOGITS, **arrays})
    with pytest.raises(UserError) as caught:
        evaluated(path)
    assert words in caught.value.message and "\n" not in caught.value.message


def test_predicted_classes_alone_are_not_enough(tmp_path):
    for path in (npz(tmp_path / "a.npz", y_true=LABELS, y_pred=LABELS), npz(tmp_path / "b.npz", y_true=TWO, y_prob=TWO),
                 table(tmp_path / "c.csv", {"file": IDS, "label": LABELS, "pred": LABELS}),
                 table(tmp_path / "d.csv", {"id": IDS, "y_true": TWO, "y_pred": TWO}),
                 table(tmp_path / "e.csv", {"y_true": np.array(NAMES)[LABELS], "prediction": np.array(NAMES)[LABELS]})):
        assert "scores are needed" in refused(path)


# ---- tables


@pytest.mark.parametrize("pattern", ["p_{}", "prob_{}", "{}_prob", "logit_{}", "{}", "probability {}", "P({})",
                                     "score.{}", "{} probability", "pred_{}", "y_prob_{}"])
@pytest.mark.parametrize("truth", ["index", "name", "one_hot"])
def test_a_column_a_class(tmp_path, pattern, truth):
    scores = LOGITS if "logit" in pattern else P
    columns = {"image": IDS, **per_class(scores, pattern)}
    if truth == "one_hot":
        columns |= per_class(np.eye(3, dtype=int)[LABELS], "true_{}")
    else:
        columns["label"] = LABELS if truth == "index" else np.array(NAMES)[LABELS]
    found = same(table(tmp_path / "x.csv", columns))
    assert found.class_names == NAMES and found.ids.tolist() == IDS


@pytest.mark.parametrize("separator, suffix, encoding, decimal", [
    (",", "csv", "utf-8-sig", "."), (";", "csv", "cp1252", ","), ("\t", "tsv", "utf-16", "."),
    (";", "txt", "utf-8", ","),
    ("\t", "txt", "utf-16-le", "."), (",", "CSV", "utf-8", ".")])
def test_separators_and_encodings(tmp_path, separator, suffix, encoding, decimal):
    names = ["Nävus", "Melanom", "é"]
    path = table(tmp_path / f"x.{suffix}", {"id": IDS, "dx": np.array(names)[LABELS], **per_class(P, names=names)},
                 separator, encoding, decimal)
    found = same(path)
    assert found.class_names == names
    assert ("Windows-1252" in found.note) == (encoding == "cp1252")


def test_ids_and_groups_have_their_usual_names(tmp_path):
    for k, (id_, group) in enumerate([("isic_id", "patient_id"), ("Image Name", "lesion_id"), ("filename", "Patient")]):
        found = read(table(tmp_path / f"{k}.csv", {id_: IDS, group: [f"g{k // 2}" for k in range(N)], "dx": LABELS,
                                                   "age": range(N), "confidence": P.max(1).tolist(), **per_class(P)}))
        assert found.ids.tolist() == IDS and len(set(found.groups)) == N // 2 and found.class_names == NAMES


def test_arrays_without_a_header_and_as_pandas_writes_them(tmp_path):
    np.savetxt(tmp_path / "scores.csv", P, delimiter=",")
    np.savetxt(tmp_path / "scores.txt", P)
    np.savetxt(tmp_path / "labels.txt", LABELS, fmt="%d")
    np.savetxt(tmp_path / "labels_e.txt", LABELS)
    table(tmp_path / "pandas.csv", {"": range(N), "0": P[:, 0].tolist(), "1": P[:, 1].tolist(), "2": P[:, 2].tolist()})
    table(tmp_path / "series.csv", {"0": LABELS})
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / "one_hot.npy", np.eye(3)[LABELS])
    np.save(tmp_path / "scores.npy", P)
    for scores in ("scores.csv", "scores.txt", "pandas.csv", "scores.npy"):
        for labels in ("labels.txt", "labels_e.txt", "series.csv", "labels.npy", "one_hot.npy"):
            found = read(tmp_path / scores, labels=tmp_path / labels)
            np.testing.assert_array_equal(found.labels, LABELS)
            np.testing.assert_allclose(found.probabilities, P, atol=1e-5)
            assert "in the order of its rows" in found.note
    for scores in ("scores.csv", "scores.npy"):
        assert "--labels FILE" in refused(tmp_path / scores)


def test_the_table_of_predict_py_has_an_answer_called_label(tmp_path):
    wrong = np.array(NAMES)[P.argmax(1)]
    sheet = {"file": [f"folder/{i}.jpg" for i in IDS], "label": wrong, "confidence": P.max(1).tolist(),
             "most_probable": wrong, "called": wrong, "abstains": ["False"] * N, **per_class(P), "error": [""] * N}
    path = table(tmp_path / "answers.csv", sheet)
    assert "--labels FILE" in refused(path)
    order = np.random.default_rng(1).permutation(N)
    truth = table(tmp_path / "truth.csv", {"image_id": np.array(IDS)[order], "dx": np.array(NAMES)[LABELS][order],
                                           "lesion_id": [f"l{k // 2}" for k in order]})
    found = read(path, labels=truth)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.groups.tolist() == [f"l{k // 2}" for k in range(N)] and "by id" in found.note
    sheet["error"][3], sheet["p_nv"][3], sheet["p_mel"][3], sheet["p_b c"][3] = "no image", "", "", ""
    assert "no image" in refused(table(tmp_path / "broken.csv", sheet), "--labels", truth)


def test_isic_ground_truth_and_answers_join_by_id(tmp_path):
    truth = table(tmp_path / "truth.csv", {"image": IDS[::-1], **per_class(np.eye(3)[LABELS[::-1]][:, [2, 0, 1]], "{}",
                                                                           ["B_C", "NV", "MEL"])})
    found = read(table(tmp_path / "answers.csv", {"image": [f"{i}.jpg" for i in IDS], **per_class(P, "{}")}),
                 labels=truth)
    np.testing.assert_array_equal(found.labels, LABELS)


def test_files_that_do_not_join_say_what_is_missing(tmp_path):
    path = table(tmp_path / "x.csv", {"id": IDS, **per_class(P)})
    error = refused(path, "--labels", table(tmp_path / "y.csv", {"id": IDS[2:], "dx": LABELS[2:]}))
    assert "no label for 2 of 60 images" in error and "img_000, img_001" in error
    assert "50 labels" in refused(path, "--labels", npz(tmp_path / "z.npz", labels=LABELS[:50]))
    assert "no true classes" in refused(path, "--labels", npz(tmp_path / "w.npz", other=LABELS))


def test_validation_takes_its_labels_from_the_same_table_by_id(tmp_path):
    test, val = (table(tmp_path / f"{name}.csv", {"id": [f"{name}{i}" for i in IDS], **per_class(scores)})
                 for name, scores in (("test", P), ("val", P[:, [0, 2, 1]])))
    labels = table(tmp_path / "all.csv", {"id": [f"{name}{i}" for name in ("val", "test") for i in IDS],
                                          "dx": [*LABELS, *LABELS]})
    found_val, found_test = of_files(test, val, labels=labels)
    assert (found_val.labels == LABELS).all() and (found_test.labels == LABELS).all()
    np.save(tmp_path / "test.npy", P), np.save(tmp_path / "val.npy", P[::-1]), np.save(tmp_path / "y.npy", LABELS)
    assert "--val-labels FILE" in refused(tmp_path / "test.npy", "--labels", tmp_path / "y.npy", "--val",
                                          tmp_path / "val.npy")
    assert "Operating points" in evaluated(tmp_path / "test.npy", "--labels", tmp_path / "y.npy", "--val",
                                           tmp_path / "val.npy", "--val-labels", tmp_path / "y.npy")


def test_two_classes_in_a_table(tmp_path):
    words = np.array(["benign", "malignant"])[TWO]
    for k, columns in enumerate([{"label": TWO, "prob": ONE.tolist()}, {"dx": words, "p_malignant": ONE.tolist()},
                                 {"dx": words, "malignant_prob": ONE.tolist()}, {"y_true": TWO, "y_pred": ONE.tolist()},
                                 {"label": np.array(["no", "yes"])[TWO], "score": ONE.tolist()}]):
        same(table(tmp_path / f"{k}.csv", columns), np.stack([1 - ONE, ONE], 1), TWO)
    assert "nothing says which class" in refused(table(tmp_path / "x.csv", {"dx": words, "score": ONE.tolist()}))


def test_a_column_that_may_be_a_class_is_asked_for(tmp_path):
    columns = {"dx": np.array(NAMES)[LABELS], **per_class(P, "{}")}
    same(table(tmp_path / "a.csv", {**columns, "thickness": (10 * RNG.random(N)).tolist()}))
    strange = {**columns, **per_class(LOGITS, "{}"), "thickness": (10 * RNG.random(N)).tolist()}
    assert "whether thickness are classes" in refused(table(tmp_path / "b.csv", strange))
    by_number = {**strange, "dx": LABELS}
    assert "are classes cannot be told" in refused(table(tmp_path / "c.csv", by_number))
    del by_number["thickness"]
    same(table(tmp_path / "d.csv", by_number))
    by_number = {"dx": LABELS, **per_class(P, "{}", "012"), "thickness": (10 * RNG.random(N)).tolist()}
    assert "thickness not read" in same(table(tmp_path / "e.csv", by_number)).note


def test_what_spreadsheets_and_pandas_add_is_no_column_of_a_class(tmp_path):
    path = table(tmp_path / "a.csv", {"Unnamed: 0": range(N), "dx": LABELS, **per_class(LOGITS, "{}"), " ": [""] * N})
    same(path)
    path.write_bytes(b"sep=,\r\n" + path.read_bytes().replace(b"\r\n", b",,\r\n"))
    same(path)


def test_ids_that_are_there_twice_are_named(tmp_path):
    path = table(tmp_path / "x.csv", {"id": IDS, **per_class(P)})
    twice = table(tmp_path / "y.csv", {"id": [*IDS[:-1], IDS[0]], "dx": LABELS})
    assert "y.csv: ids are not unique: img_000" in refused(path, "--labels", twice)


def test_what_validation_is_taken_for_is_said_where_it_differs(tmp_path):
    test = npz(tmp_path / "test.npz", labels=LABELS, logits=LOGITS)
    val = npz(tmp_path / "val.npz", labels=LABELS, logits=100 * P[:, [1, 0, 2]])
    assert "validation: logits are taken for percent" in evaluated(test, "--val", val)


# ---- every door


def test_compare_and_audit_read_the_same_files(tmp_path):
    a = table(tmp_path / "a.csv", {"id": IDS, "dx": LABELS, **per_class(100 * P)})
    b = npz(tmp_path / "b.npz", ids=np.array(IDS), y=LABELS, outputs=LOGITS, class_names=np.array(NAMES))
    shown = evaluated(a, b, "--compare")
    assert "taken for percent" in shown and "0.000" in shown
    assert "no groups" in evaluated(a, "--audit").lower() or "audit" in evaluated(a, "--audit").lower()
    assert "taken for percent" in evaluated(a, b)


def test_files_of_other_kinds_are_named(tmp_path):
    for name in ("x.pkl", "x.xlsx", "x.json", "best.pt"):
        (tmp_path / name).write_bytes(b"x")
        assert "neither a run's folder nor a predictions file" in refused(tmp_path / name)


def test_options_of_files_do_not_go_with_runs_and_kinds_are_known(tmp_path):
    path = npz(tmp_path / "x.npz", labels=LABELS, logits=LOGITS)
    with pytest.raises(UserError, match="--val-labels"):
        evaluated(path, "--val-labels", path)
    with pytest.raises(UserError, match="invalid choice"):
        evaluated(path, "--scores", "words")
    assert len(KINDS) == 5 and prediction_files.is_file(path) and not prediction_files.is_file(tmp_path)


@pytest.mark.parametrize("count", [1, 12, 60])
def test_a_set_of_one_class_is_not_called_too_odd_to_be_true(tmp_path, count):
    rng = np.random.default_rng(count)
    val = npz(tmp_path / "val.npz", labels=LABELS, logits=LOGITS)
    for right in (0, count // 2, count):
        certain = 30 if count < 20 else 3  # a few images may well all be answered with certainty
        logits = rng.normal(size=(count, 3)) + certain * np.eye(3)[np.where(np.arange(count) < right, 2, 0)]
        shown = evaluated(npz(tmp_path / "x.npz", labels=np.full(count, 2), logits=logits), "--val", val)
        assert "error:" not in shown and "nan" not in shown.lower()
        assert "Every test image is of 2: AUROC and specificity need images of other classes" in shown


@pytest.mark.parametrize("name", ["ids", "groups"])
def test_a_file_of_labels_has_as_many_ids_and_groups_as_labels(tmp_path, name):
    np.savez(tmp_path / "x.npz", y_prob=np.eye(4), ids=list("abcd"))
    np.savez(tmp_path / "y.npz", labels=np.arange(4), **{name: np.array(["a", "b", "c", "d", "e"])})
    with pytest.raises(UserError, match=rf"y.npz: {name} has shape \(5,\); \(4,\) is needed"):
        read(tmp_path / "x.npz", labels=tmp_path / "y.npz")


# ---- columns that are no class

FIGURES = {"p_max": P.max(1), "max_p": P.max(1), "p_true": P[np.arange(N), LABELS], "p_sum": P.sum(1),
           "prob_threshold": np.full(N, .01), "p_value": RNG.random(N) / 100, "p_entropy": RNG.random(N),
           "p_max_value": P.max(1), "score_margin": RNG.random(N), "p_conf": P.max(1)}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("truth", ["names", "numbers", "other file", "one-hot"])
@pytest.mark.parametrize("kind", ["p_{}", "{}"])
@pytest.mark.parametrize("scores", [P, LOGITS, SIGMOID], ids=["probabilities", "logits", "sigmoid"])
def test_a_figure_beside_the_scores_is_no_class_and_is_named(tmp_path, name, truth, kind, scores):
    affix = name.replace("prob", "p").replace("score", "p") if kind == "p_{}" else name
    columns = {"id": IDS, **per_class(scores, kind), affix: FIGURES[name].tolist()}
    labels = {"names": {"label": [NAMES[k] for k in LABELS]}, "numbers": {"label": LABELS.tolist()},
              "one-hot": per_class(np.eye(3)[LABELS], "true_{}")}.get(truth, {})
    second = {}
    if truth == "other file":
        second["labels"] = table(tmp_path / "y.csv", {"id": IDS, "label": [NAMES[k] for k in LABELS]})
    expected = SIGMOID / SIGMOID.sum(1, keepdims=True) if scores is SIGMOID else P
    found = read(table(tmp_path / "x.csv", {**columns, **labels}), scores="sigmoid" if scores is SIGMOID else None,
                 **second)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    assert found.class_names == NAMES and f"{affix} not read" in found.note


@pytest.mark.parametrize("names, labels", [
    (["max", "min", "sum"], ["max", "min", "sum"]), (["true", "false"], ["true", "false"]), (["value", "p"], None)])
def test_a_class_that_is_called_like_a_figure_is_one(tmp_path, names, labels):
    """The labels name it, or the others alone do not sum to 1."""
    count = len(names)
    scores = P[:, :count] / P[:, :count].sum(1, keepdims=True)
    y = LABELS % count
    for values in (scores, 4 * scores - 2):
        found = same(table(tmp_path / "x.csv", {"label": [labels[k] for k in y] if labels else y.tolist(),
                                                **per_class(values, "prob_{}", names)}), metrics.softmax(values)
                     if values is not scores else scores, y)
        assert found.class_names == names


def test_a_column_without_which_all_sum_to_one_is_no_class_whatever_its_name(tmp_path):
    columns = per_class(P)
    for labels in ([NAMES[k] for k in LABELS], LABELS.tolist()):
        found = same(table(tmp_path / "x.csv", {"label": labels, **columns, "p_foo": RNG.random(N).tolist()}))
        assert "p_foo not read" in found.note
    # a class of which there is no image, and that is never predicted, stays one
    zero = table(tmp_path / "y.csv", {"label": LABELS.tolist(), **columns, "p_rare": [0.0] * N})
    assert read(zero).class_names == [*NAMES, "rare"]


def test_a_single_figure_is_no_score(tmp_path):
    path = table(tmp_path / "x.csv", {"label": TWO.tolist(), "p_value": ONE.tolist()})
    assert "it has neither logits nor y_prob" in refused(path) and "p_CLASS" in refused(path)


def test_one_column_is_the_score_of_the_class_that_it_is_called_after(tmp_path):
    words = np.array(["benign", "malignant"])
    for pattern in ("{}", "p_{}"):
        for k, share in ((1, ONE), (0, 1 - ONE)):
            path = table(tmp_path / "x.csv", {"image": IDS, "label": words[TWO].tolist(), "age": [30.5] * N,
                                              pattern.format(words[k]): share.tolist()})
            found = read(path)
            np.testing.assert_allclose(found.probabilities[:, found.class_names.index("malignant")], ONE, atol=1e-5)
            assert [found.class_names[label] for label in found.labels] == words[TWO].tolist()
    path = table(tmp_path / "y.csv", {"label": [NAMES[k] for k in LABELS], "p_mel": ONE.tolist()})
    assert "p_mel is one score an image, and label has 3 classes" in refused(path)


def test_a_truth_under_an_unknown_name_is_asked_for_and_renaming_leads_out(tmp_path):
    columns = {"id": IDS, "Klasse": [NAMES[k] for k in LABELS], **per_class(P)}
    error = refused(table(tmp_path / "x.csv", columns))
    assert "It has: id, Klasse," in error and "call it label" in error
    same(table(tmp_path / "x.csv", {"label" if name == "Klasse" else name: cells for name, cells in columns.items()}))


def test_numbers_that_count_from_one_are_found_though_the_last_class_has_no_image(tmp_path):
    rows = LABELS < 2
    path = npz(tmp_path / "x.npz", labels=LABELS[rows] + 1, y_prob=P[rows])
    error = refused(path)
    assert "labels go from 1 to 2 of 3 classes" in error and "subtract 1" in error
    same(npz(tmp_path / "x.npz", labels=LABELS[rows], y_prob=P[rows]), P[rows], LABELS[rows])
    named = npz(tmp_path / "x.npz", labels=np.array(NAMES)[LABELS[rows] + 1], y_prob=P[rows], class_names=NAMES)
    same(named, P[rows], LABELS[rows] + 1)  # bad answers, but it is said which classes they are
    others = LABELS > 0
    same(npz(tmp_path / "y.npz", labels=LABELS[others], y_prob=P[others]), P[others], LABELS[others])


def test_two_encodings_of_one_accent_are_one_class_and_one_image(tmp_path):
    one, two = "N\u00e4vus", "Na\u0308vus"
    found = same(npz(tmp_path / "x.npz", labels=np.array([one, "mel", "b c"])[LABELS], y_prob=P,
                     class_names=np.array([two, "mel", "b c"])))
    assert found.class_names[0] == two
    ids = [f"{one}_{k}.png" for k in range(N)]
    labels = table(tmp_path / "y.csv", {"id": [i.replace(one, two) for i in ids], "label": LABELS.tolist()})
    np.testing.assert_array_equal(read(npz(tmp_path / "y.npz", ids=ids, y_prob=P), labels=labels).labels, LABELS)


def test_a_table_may_be_separated_by_bars(tmp_path):
    same(table(tmp_path / "x.csv", {"id": IDS, "label": [NAMES[k] for k in LABELS], **per_class(P)}, "|"))


@pytest.mark.parametrize("scores, words", [
    (P.astype(str), "holds text"), (P.astype(complex), "holds complex numbers"),
    (np.array([tuple(row) for row in P], dtype=[("a", "f4"), ("b", "f4"), ("c", "f4")]), "holds records")])
def test_what_is_no_number_is_said_in_words(tmp_path, scores, words):
    np.save(tmp_path / "x.npy", scores)
    np.save(tmp_path / "y.npy", LABELS)
    error = refused(tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    assert words in error and not any(name in error for name in ("str", "void", "complex128"))


def test_probabilities_in_8_bits_are_divided_by_their_sum_and_sigmoids_asked_for(tmp_path):
    found = same(npz(tmp_path / "x.npz", labels=LABELS, scores=np.round(255 * P).astype(np.uint8)), tolerance=5e-3)
    assert "sum to 255 in each image and are divided by it" in found.note
    same(tmp_path / "x.npz", tolerance=5e-3, scores="probabilities")
    error = refused(npz(tmp_path / "y.npz", labels=LABELS, scores=np.round(255 * SIGMOID).astype(np.uint8)))
    assert "probabilities in 8 bits cannot be told" in error and "percent" not in error and "divided by 255" in error
    assert read(tmp_path / "y.npz", scores="logits").logits is not None
    same(npz(tmp_path / "y.npz", labels=LABELS, scores=np.round(255 * SIGMOID) / 255),
         SIGMOID / SIGMOID.sum(1, keepdims=True), tolerance=5e-3)


def test_ids_that_stand_for_several_images_are_explained(tmp_path):
    (tmp_path / "g.csv").write_text("id,group\n1.png,a\n1.png,b\n", encoding="utf-8")
    from kd.predictions import read_groups
    with pytest.raises(UserError, match="gives 1 images two groups") as caught:
        read_groups(tmp_path / "g.csv")
    assert "the path below --root" in caught.value.hint
