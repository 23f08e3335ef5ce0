"""From predictions to what evaluation says: of one test set, over the seeds of a model, over models.

Two steps that never mix: `choose` sees validation alone and fixes the temperature and every
operating point; `evaluate` applies them, frozen, to test.
"""

from dataclasses import dataclass

import numpy as np

from kd import bootstrap, calibration, metrics, operating_points, predictions, runs
from kd.errors import UserError, listing, nearest
from kd.files import write_json
from kd.predictions import difference_between

CALIBRATED = ("nll", "brier", "ece", "ece_equal_mass", "ece_classwise", "rms_ce_debiased", "mce", "aurc")
MAJORITY = ("accuracy", "macro_f1", "balanced_accuracy")
MANY = 25  # with more classes than these a threshold for each says little, unless it is asked for


@dataclass
class Settings:
    """What a user may choose about evaluation."""

    replicates: int = bootstrap.REPLICATES
    bins: int = calibration.BINS
    targets: list = None        # names of the classes that get a threshold; None: all, up to MANY
    sensitivity: float = 0.95
    risk: float = 0.1


# ---- on validation


@dataclass
class Choices:
    """What was chosen on validation."""

    temperature: calibration.Temperature
    points: list  # operating points as in metrics.json, without their test figures
    majority: int

    def calibrated(self, held):
        """Probabilities [n, C] of Predictions after temperature; None where the fit failed."""
        return metrics.softmax(held.scores / self.temperature.value) if self.temperature.ok else None


def choose(val, settings):
    """Choices on the Predictions `val`. UserError for a target that is no class."""
    names = val.class_names
    unknown = [name for name in settings.targets or () if name not in names]
    if unknown:
        raise UserError(f"--target {listing(unknown)}: no such class",
                        nearest(unknown[0], names) or f"The classes are {listing(names, 12)}.")
    targets = settings.targets or (names if len(names) <= MANY else ())
    support = np.bincount(val.labels, minlength=len(names))
    points = []
    for name in dict.fromkeys(targets):
        k = names.index(name)
        positive, scores = val.labels == k, val.probabilities[:, k]
        threshold = operating_points.threshold_for(settings.sensitivity, positive, scores)
        points.append({"name": f"{name} at sensitivity {settings.sensitivity:g}", "kind": "sensitivity", "class": name,
                       "threshold": threshold, "promised": settings.sensitivity,
                       "val": operating_points.binary(positive, scores >= threshold)})
    for kind, name, multipliers in (
            ("macro_f1", "multipliers for macro F1", operating_points.macro_f1_multipliers(val.labels, val.probabilities)),
            ("prior", "prior correction", operating_points.prior_multipliers(support))):
        points.append({"name": name, "kind": kind, "class": None,
                       "threshold": dict(zip(names, multipliers.tolist())), "promised": None,
                       "val": {key: values[0] for key, values in decisions(val, multipliers).items()}})
    correct, confidence = certainty(val)
    _, threshold = operating_points.coverage_at(settings.risk, correct, confidence)
    points.append({"name": f"abstention at risk {settings.risk:g}", "kind": "abstention", "class": None,
                   "threshold": threshold, "promised": settings.risk,
                   "val": operating_points.selective(correct, confidence, threshold)})
    temperature = calibration.fit_temperature(val.scores, val.labels)
    return Choices(temperature, [{**point, "chosen_on": "val"} for point in points], int(support.argmax()))


def certainty(held):
    """(correct [n] bool, confidence [n]) of the most probable class."""
    return held.probabilities.argmax(1) == held.labels, held.probabilities.max(1)


# ---- on test


@dataclass
class Evaluated:
    """result: the content of metrics.json; values: {NAME: [1 + B]}, the replicates behind its "test"."""

    test: predictions.Predictions
    result: dict
    values: dict


def evaluate(val, test, settings=Settings()):
    """Evaluated: Predictions `test` measured, with what was chosen on `val` (None: nothing is).

    A temperature that cannot be fitted leaves the calibrated figures out; the rest stands.
    """
    choices = choose(val, settings) if val else None
    answer = choices.majority if choices else int(np.bincount(test.labels).argmax())
    calibrated = choices.calibrated(test) if choices else None
    names = test.class_names
    index, weights = resampling(test, settings)
    values = bootstrap.replicate(test.labels, test.probabilities, index, weights, names, calibrated, settings.bins)
    always = bootstrap.constant(test.labels, answer, len(names), index, weights)
    result = {
        "conventions": conventions(test, names[answer], settings),
        "class_names": names,
        "split": {**({"val": val.size()} if val else {}), "test": test.size()},
        "majority": {name: always[name] for name in MAJORITY},
        "test": bootstrap.intervals(values),
        "confusion": metrics.confusion(test.labels, test.probabilities.argmax(1), len(names)).tolist(),
        "calibration": None, "operating_points": [], "risk_coverage": risk_coverage(test),
    }
    if choices:
        # the temperature was fitted here, so calibrated figures of validation would flatter
        result["val"] = bootstrap.intervals(bootstrap.replicate(
            val.labels, val.probabilities, *resampling(val, settings), names, bins=settings.bins))
        result["calibration"] = calibration_of(test, calibrated, choices.temperature, settings.bins)
        result["operating_points"] = test_points(choices.points, test, index, weights)
        if not choices.temperature.ok:
            undefined = dict.fromkeys(("value", "lo", "hi"), float("nan"))
            result["test"].update({f"{name}_calibrated": {**undefined, "replicates": settings.replicates,
                                                          "undefined": settings.replicates} for name in CALIBRATED})
    return Evaluated(test, result, values)


def resampling(test, settings):
    """(index [n], weights [1 + B, G]) of the clusters of Predictions; the same clusters get the same weights."""
    index, count = bootstrap.clusters(test.clusters)
    return index, bootstrap.shared(count, settings.replicates)


def conventions(test, majority, settings):
    told = {"level": bootstrap.LEVEL, "interval": "percentile, bias-corrected for calibration errors",
            "replicates": settings.replicates, "clusters": "image" if test.groups is None else "group",
            "n_clusters": test.size()["groups"], "seed": bootstrap.SEED, "majority_class": majority,
            "bins": settings.bins, "closed": "right"}
    return {**told, "note": test.note} if test.note else told


def calibration_of(test, calibrated, fit, bins):
    """Temperature, and reliability before and after it; null where the fit failed."""
    return {"temperature": fit.value if fit.ok else None, "bounds": [fit.lo, fit.hi], "reason": fit.reason,
            "bins": bins, "closed": "right", "nll_val_before": fit.nll_before,
            "nll_val_after": fit.nll_after if fit.ok else None,
            "reliability": {"raw": calibration.reliability(test.labels, test.probabilities, bins),
                            "calibrated": fit.ok and calibration.reliability(test.labels, calibrated, bins) or None}}


def test_points(points, test, index, weights):
    """The operating points with what they give on test, each figure a METRIC."""
    images = weights[:, index]
    tested = []
    for point in points:
        kind, threshold = point["kind"], point["threshold"]
        if kind == "sensitivity":
            k = test.class_names.index(point["class"])
            values = operating_points.binary(test.labels == k, test.probabilities[:, k] >= threshold, images)
            if np.isnan(threshold):  # no positive on validation: nothing was promised
                values = {name: np.full(len(weights), np.nan) for name in values}
            values["shortfall"] = point["promised"] - values["sensitivity"]
        elif kind == "abstention":
            values = operating_points.selective(*certainty(test), threshold, images)
            values["shortfall"] = values["risk"] - point["promised"]
        else:
            values = decisions(test, np.array(list(threshold.values())), index, weights)
        figures = bootstrap.intervals(bootstrap.spread(values, weights))
        tested.append({**point, "shortfall": figures.pop("shortfall", None), "test": figures})
    return tested


def decisions(held, multipliers, index=None, weights=None):
    """{NAME: [1 + B]} of accuracy, macro-F1 and balanced accuracy when argmax(multipliers * p) is the answer."""
    if index is None:
        index, weights = np.zeros(len(held.labels), dtype=np.int64), np.ones((1, 1), dtype=np.uint8)
    answers = (multipliers * held.probabilities).argmax(1)
    counts = bootstrap.confusions(held.labels, answers, len(held.class_names), index, weights)
    return {name: values for name, values in bootstrap.overall(counts).items() if name in MAJORITY}


def risk_coverage(held, points=101):
    """The curve at up to `points` coverages."""
    coverage, risk = operating_points.risk_coverage(*certainty(held))
    kept = np.unique(np.linspace(0, len(coverage) - 1, points).round().astype(int))
    return {"coverage": coverage[kept].tolist(), "risk": risk[kept].tolist()}


# ---- runs, and the seeds of a model


def over_seeds(evaluated):
    """Write seeds.json for each model of several seeds, all of which were evaluated on one test set.

    evaluated: {seed's folder: Evaluated}. Returns {model's folder: content of its seeds.json}.
    """
    written = {}
    for model in dict.fromkeys(folder.parent for folder in evaluated):
        seeds = [folder for folder in runs.find(model) if folder.parent == model]
        if len(seeds) < 2 or not all(seed in evaluated for seed in seeds):
            continue
        held = [evaluated[seed] for seed in seeds]
        if any(difference_between(one.test, held[0].test) for one in held):
            continue
        common = [name for name in held[0].values if all(name in one.values for one in held)]
        content = {"seeds": [runs.describe(seed)[2].removeprefix("seed_") for seed in seeds],
                   "conventions": held[0].result["conventions"],
                   "test": {name: over_seeds_of(name, [one.values[name] for one in held]) for name in common}}
        write_json(model / "seeds.json", content)
        written[model] = content
    return written


def over_seeds_of(name, values):
    """bootstrap.over_seeds() of the metric `name`, its interval within the metric's range: of two seeds t is wide."""
    held = bootstrap.over_seeds(values, corrected=bootstrap.biased(name))
    return {**held, **{bound: float(np.clip(held[bound], 0, upper_bound(name))) for bound in ("lo", "hi")}}


def upper_bound(name):
    """The largest value that the metric `name` can have; the least is 0 for all."""
    return {"nll": np.inf, "brier": 2.0}.get(name.removesuffix("_calibrated"), 1.0)
