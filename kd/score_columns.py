"""Which columns of a table are the scores of classes: by their names, by their sums, and by what the labels name.

Beside the scores people save what they compute from them, such as p_max or threshold, which is no class.
"""

import re
import unicodedata

import numpy as np

from kd.errors import UserError, listing
from kd.files import parse_number

# Names of columns, in small letters with _ for - and space.
LABELS = ("labels", "y_true", "true_labels", "true_label", "true_class", "true", "truth", "ground_truth", "gt",
          "targets", "target", "y_test", "actual")
MAYBE_LABELS = ("label", "dx", "diagnosis", "class", "category", "y")  # a model's answer may be called so, too
LOGITS = ("logits", "logit")
SCORES = ("y_prob", "probabilities", "probability", "probs", "prob", "y_probs", "y_proba", "proba", "predict_proba",
          "pred_probs", "pred_prob", "predicted_probabilities", "softmax", "sigmoid", "y_score", "y_scores", "scores",
          "score", "log_probs", "logprobs", "log_probabilities", "percent", "p")
ANSWERS = ("outputs", "output", "preds", "predictions", "y_pred", "y_preds", "pred", "prediction", "predicted",
           "y_hat", "predicted_class", "predicted_label", "pred_label", "pred_class", "most_probable", "answer")
# What is computed from scores and saved beside them, in columns such as p_max, true_prob or logit_margin
NO_NAMES = {"max", "maximum", "min", "minimum", "top", "top1", "argmax", "sum", "total", "mean", "average", "avg",
            "std", "sd", "var", "variance", "true", "truth", "gt", "correct", "threshold", "thresh", "thr", "cutoff",
            "value", "margin", "entropy", "conf", "confidence", "uncertainty", "loss", "index", "idx", "rank", "pred",
            "predicted", "prediction", "label", "class", "temperature"}


def plain(name):
    """A name of a column or an array as the lists above have it."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def numbers_of(cells):
    """[n] float64 of text cells; percent signs are dropped, NaN for what is no number."""
    return np.array([parse_number(cell.rstrip(" %")) for cell in cells])


def _words(*names):
    """A pattern of the words before or after the class in a column's name, the longest first."""
    return "|".join(sorted((name for name in names if not name.endswith(("class", "label"))), key=len, reverse=True))


_SCORE = _words(*LOGITS, *SCORES, *ANSWERS, "pr", "conf", "out", "pct")
_TRUTH = _words(*LABELS, "y", "onehot", "one_hot") + "|label"


def find_scores(result, numbers, errors, are_labels, truth):
    """Fill in scores, their names, and one-hot labels of Columns from {column: [n] numbers}.

    errors: reasons why images have no scores, [n] or none. are_labels: of a file that was given for its labels. truth:
    the Columns that have the labels.
    """
    truths, affixed, bare, single = {}, {}, {}, []  # {affix: {class: column}}, {class: column}, columns
    for name in numbers:
        affix, of_class = _affix(name)
        if plain(name) in (*LOGITS, *SCORES, *ANSWERS):
            single.append(name)
        elif affix:
            affixes = truths if re.fullmatch(_TRUTH, affix) else affixed
            affixes.setdefault(affix, {})[of_class] = name
        else:
            bare[name] = name
    one_hot = next((columns for columns in truths.values() if len(columns) > 1), None) or _binary(bare, numbers)
    has_labels = result.labels is not None
    if one_hot and not has_labels:
        result.labels = np.stack([numbers[name] for name in one_hot.values()], 1)
        result.one_hot, result.label_name = list(one_hot), listing(list(one_hot.values()), 2)
    several = [affix for affix in affixed if len(affixed[affix]) > 1]
    named, count = _labels_of(truth)
    of_a_class = [name for name in bare if named and loose(name) in named and not _is_whole(numbers[name])]
    chosen, affix = {}, ""
    if several:
        affix = min(several, key=lambda affix: "logit" not in affix)
        chosen = _without_others(affixed[affix], numbers, truth)
    elif len(of_a_class) == 1 and count == 2 and not are_labels and not affixed:  # the score of one of two classes
        chosen, affix = {of_a_class[0]: of_a_class[0]}, "p"
    elif len(bare) > 1 and not (are_labels and one_hot) and one_hot is not bare:
        chosen = _classes_of(result, bare, numbers, truth)
    elif single:
        is_score = [name for name in single if not _is_whole(numbers[name])]
        chosen = {name: name for name in is_score[:1]}
        result.answers = result.answers or single[0]
    elif affixed:
        affix = next(iter(affixed))
        chosen = _without_others(affixed[affix], numbers, truth)
    elif bare and not are_labels and has_labels:  # answers of 0 and 1
        chosen = one_hot or {}
    if chosen:
        scores = np.stack([numbers[name] for name in chosen.values()], 1)
        broken = ~np.isfinite(scores).all(1)
        reasons = [reason for reason, is_broken in zip(errors, broken) if is_broken and reason]
        if reasons:
            raise UserError(f"{result.path}: {broken.sum()} of {len(scores)} images have no scores: {listing(reasons)}",
                            "Repair these images, or delete their rows to evaluate the others.")
        is_one = len(chosen) == 1
        result.scores = scores[:, 0] if is_one else scores
        result.score_name = next(iter(chosen.values())) if is_one else f"{affix} columns".strip()
        if not is_one or affix:  # of one class, the other has the name of the other label
            result.class_names = list(chosen)
    unread = [name for name in numbers if name not in {*chosen.values(), *(one_hot or {}).values()}]
    if unread:
        result.notes.append(f"{listing(unread)} not read")


def _binary(columns, numbers):
    """{class: column} of the columns with only 0 and 1, where these are all or have one 1 in each row; else None."""
    binary = {name: name for name in columns if set(numbers[name]) <= {0, 1}}
    if len(binary) < 2 or len(binary) < len(columns) and (sum(numbers[name] for name in binary) != 1).any():
        return None
    return columns if len(binary) == len(columns) else binary


def _affix(name):
    """(kind, class) of a column such as p_nv, nv_prob, `logit nv` or prob0; ('', name) of any other."""
    match = re.fullmatch(f"(?i)({_SCORE}|{_TRUTH})(?:[\\s_.:\\-(\\[]+(.+?)[)\\]]?|(\\d+))", name)
    if match:
        return match[1].lower(), match[2] or match[3]
    match = re.fullmatch(f"(?i)(.+?)[\\s_.:\\-]+({_SCORE}|{_TRUTH})", name)
    return (match[2].lower(), match[1]) if match else ("", name)


def _labels_of(truth):
    """(loose names of the classes that the labels of Columns name, or None; how many they count at least)."""
    labels = truth.labels
    if truth.one_hot:
        return {loose(name) for name in truth.one_hot}, len(truth.one_hot)
    if labels is not None and labels.ndim == 2 and labels.shape[1] > 1:
        return None, labels.shape[1]
    if labels is None or labels.ndim != 1 or not labels.size or labels.dtype.kind not in "Uiub":
        return None, 0
    if labels.dtype.kind != "U":
        return None, int(labels.max()) + 1
    values = numbers_of(labels)
    if np.isnan(values).any():
        return {loose(label) for label in labels}, len(set(labels))
    return None, int(values.max()) + 1 if np.isfinite(values).all() else 0


def _is_no_name(name):
    """Whether a class would hardly be called so: all its words are of NO_NAMES."""
    words = re.findall(r"[^\W_]+", str(name).lower())
    return bool(words) and NO_NAMES.issuperset(words)


def _off_total(columns, numbers):
    """How far the sums of {class: column} in the rows are from 1, or from 100 of it, at most; infinite without any."""
    totals = np.sum([numbers[name] for name in columns.values()], 0) if columns else np.full(1, np.inf)
    return min(np.nanmax(np.abs(totals - total)) / total if np.isfinite(totals).any() else np.inf for total in (1, 100))


TOTAL = 0.02  # how far rounding may move the sum of probabilities


def _without_others(columns, numbers, truth):
    """{class: column} of one affix, without those of figures that are no scores of a class, such as p_max or p_value.

    These are the columns that the labels do not name, and without which all rows sum to 1; else those that are named
    after such a figure, and not after a class. Where that leaves fewer than the labels count, all are classes.
    truth: the Columns that have the labels.
    """
    named, least = _labels_of(truth)
    others = {name for name in columns if named is None or loose(name) not in named}
    figures = {name for name in others if _is_no_name(name)}
    every = _off_total(columns, numbers)

    def without(names):
        return {name: column for name, column in columns.items() if name not in names}

    ways = [figures]
    if every > TOTAL:  # of probabilities a class may be 0 in all images
        ways += [others] * bool(named) + [figures | {name} for name in others - figures]
    for names in filter(None, ways):
        rest = without(names)
        if len(rest) >= max(2, least) and _off_total(rest, numbers) <= min(TOTAL, every):
            return rest
    keeps_enough = len(columns) - len(figures) >= max(2, least) or len(columns) == 1
    return without(figures) if every > TOTAL and keeps_enough else columns


def _classes_of(result, columns, numbers, truth):
    """{class: column} of those among columns without an affix that are classes.

    All, where they sum to 1 or 100 in each row; the numbers 0, 1, ... alone; those that labels name; those that labels
    count. UserError where that leaves it open. truth: the Columns that have the labels.
    """
    columns = _without_others(columns, numbers, truth)
    digits = [str(k) for k in range(len(columns)) if str(k) in columns]
    in_percent = {name: name for name in columns
                  if np.nanmin(numbers[name]) >= 0 and np.nanmax(numbers[name]) <= 1}
    (named, least), known = _labels_of(truth), None
    if _off_total(columns, numbers) <= TOTAL:
        return columns
    others = [name for name in columns if named and loose(name) not in named]
    if len(digits) > 1 and digits == [str(k) for k in range(len(digits))]:
        known = digits
    elif len(in_percent) > 1 and _off_total(in_percent, numbers) <= TOTAL:
        known = in_percent
    elif named:
        known = None if others and len(others) < len(columns) else list(columns)
    elif least in (0, len(columns)):
        known = list(columns)
    if known is None:
        raise UserError(f"{result.path}: whether {listing(others or list(columns), 12)} are classes cannot be told",
                        "Name the columns of classes p_CLASS or logit_CLASS, and no others.")
    return {name: name for name in known}


def _is_whole(values):
    return bool(np.all(np.isfinite(values)) and np.all(values == np.round(values)))


def loose(name):
    """A class name without case, spaces and underscores, and with one encoding of accents."""
    return re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFC", str(name))).casefold()
