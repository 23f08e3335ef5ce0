"""The protocol of an evaluation: choose on validation, evaluate on test, summarise over seeds.

    choices = choose(val, settings)            the temperature and the operating points
    evaluated = evaluate(val, test, settings)  the content of metrics.json: `choices`, applied to test
    over_seeds({folder: evaluated, ...})       seeds.json of each model

`choose` reads validation alone, and nothing that `evaluate` finds on test changes what was chosen.
"""

from dataclasses import dataclass, field

import numpy as np

from kd import bootstrap, calibration, estimate, metrics, operating_points, predictions, runs
from kd.errors import UserError, listing, nearest
from kd.files import write_json
from kd.predictions import difference_between

CALIBRATED = ("nll", "brier", "ece", "ece_equal_mass", "ece_classwise", "rms_ce_debiased", "mce", "aurc")
INTERVALS = "smoothed cluster bootstrap (2)"  # how intervals are made, as metrics.json states it
MAJORITY = ("accuracy", "macro_f1", "balanced_accuracy")  # metrics of rules that give answers without probabilities
MAX_TARGETS = 25  # with more classes, a threshold for each says little, unless the user asks for it


@dataclass
class Settings:
    """Options of an evaluation."""

    replicates: int = bootstrap.REPLICATES
    bins: int = calibration.BINS  # of calibration errors
    targets: list = None        # names of the classes that get a threshold; None: all, up to MAX_TARGETS
    sensitivity: float = 0.95   # that these thresholds promise
    risk: float = 0.1           # error rate that abstention promises
    assurance: float = operating_points.ASSURANCE  # that a promise holds for the population


# ---- choose on validation


@dataclass
class Choices:
    """What was chosen on validation."""

    temperature: calibration.Temperature
    points: list  # operating points as in metrics.json, without their test figures
    majority: int

    def calibrated(self, predictions):
        """Probabilities [n, C] of Predictions after temperature; None where the fit failed."""
        return metrics.softmax(predictions.scores / self.temperature.value) if self.temperature.ok else None


def choose(val, settings, part="val"):
    """Choices on the Predictions `val`: temperature, operating points, majority class.

    part: what these images are called, as operating points record it. Raises UserError for a target that is no class.
    """
    names = val.class_names
    targets = check_targets(names, settings.targets)
    support = np.bincount(val.labels, minlength=len(names))
    points = []

    # a threshold on the probability of each target, as high as the sensitivity allows
    for name in targets:
        k = names.index(name)
        positive, scores = val.labels == k, val.probabilities[:, k]
        threshold, promised = operating_points.threshold_for(settings.sensitivity, positive, scores,
                                                             settings.assurance, val.clusters)
        promised = 0.0 if np.isnan(promised) else promised  # validation has none of them
        points.append({**_point(f"{name} at sensitivity {settings.sensitivity:g}", "sensitivity", threshold,
                                operating_points.binary(positive, scores >= threshold), name, promised),
                       "asked": settings.sensitivity, "assurance": settings.assurance})

    # multipliers of the probabilities, one a class; undefined where one class is all that validation has
    rules = () if (support > 0).sum() < 2 else (
        ("multipliers for macro F1", "macro_f1", operating_points.macro_f1_multipliers(val.labels, val.probabilities)),
        ("prior correction", "prior", operating_points.prior_multipliers(support)))
    for name, kind, multipliers in rules:
        counts = metrics.confusion(val.labels, (multipliers * val.probabilities).argmax(1), len(names))
        on_val = {metric: float(getattr(metrics, metric)(counts)) for metric in MAJORITY}
        points.append(_point(name, kind, dict(zip(names, multipliers.tolist())), on_val))

    # a confidence below which no answer is given
    correct, confidence = certainty(val)
    _, threshold = operating_points.coverage_at(settings.risk, correct, confidence, settings.assurance)
    points.append({**_point(f"abstention at risk {settings.risk:g}", "abstention", threshold,
                            operating_points.selective(correct, confidence, threshold), promised=settings.risk),
                   "assurance": settings.assurance})

    points = [{**point, "chosen_on": part} for point in points]
    temperature = calibration.fit_temperature(val.scores, val.labels)
    return Choices(temperature, points, int(support.argmax()))


def check_targets(names, targets):
    """The classes that get a threshold: those of `targets`, else all of `names`, up to MAX_TARGETS. UserError for a
    target that is no class.
    """
    unknown = [name for name in targets or () if name not in names]
    if unknown:
        raise UserError(f"--target {listing(unknown)}: no such class",
                        nearest(unknown[0], names) or f"The classes are {listing(names, 12)}.")
    return list(dict.fromkeys(targets or (names if len(names) <= MAX_TARGETS else ())))


def _point(name, kind, threshold, on_val, class_name=None, promised=None):
    """An operating point as in metrics.json, without its test figures."""
    return {"name": name, "kind": kind, "class": class_name, "threshold": threshold, "promised": promised,
            "val": on_val}


def certainty(predictions):
    """(correct [n] bool, confidence [n]) of the most probable class."""
    return predictions.probabilities.argmax(1) == predictions.labels, predictions.probabilities.max(1)


def decisions(predictions, multipliers, draws):
    """{NAME: Estimate} of the metrics MAJORITY when argmax(multipliers * p) is the answer; multipliers: [C]."""
    estimates = bootstrap.overall((multipliers * predictions.probabilities).argmax(1), draws)
    return {name: estimates[name] for name in MAJORITY}


# ---- evaluate on test


@dataclass
class Evaluated:
    """result: the content of metrics.json; values: {NAME: Estimate} behind its "test"."""

    test: predictions.Predictions
    result: dict
    values: dict
    fidelity: dict = field(default_factory=dict)  # {NAME: Estimate} behind its "fidelity"


def evaluate(val, test, settings=Settings(), choices=None):
    """Evaluated: the metrics of Predictions `test`, with what choose() gives for `val`.

    val: Predictions, or None; then there is no temperature and no operating point, but those of `choices`, which were
    made before. A temperature that cannot be fitted leaves the calibrated figures out; all others are computed.
    """
    names = test.class_names
    choices = choices or (choose(val, settings) if val else None)
    majority = choices.majority if choices else int(np.bincount(test.labels).argmax())
    calibrated = choices.calibrated(test) if choices else None
    draws, rarest = resampling(test, settings), rarest_class(test)
    values = bootstrap.replicate(test.probabilities, draws, names, calibrated, settings.bins, rarest)
    majority_rule = bootstrap.constant(majority, draws)
    confusion = metrics.confusion(test.labels, test.probabilities.argmax(1), len(names))
    result = {
        "conventions": conventions(test, names[majority], settings),
        "class_names": names,
        "split": {**({"val": val.size()} if val else {}), "test": test.size()},
        "majority": {name: majority_rule[name].metric() for name in MAJORITY},
        "test": bootstrap.intervals(values),
        "confusion": confusion.tolist(),
        "calibration": None, "operating_points": [], "risk_coverage": risk_coverage(test),
    }
    if choices:
        if val:
            # uncalibrated only: the temperature was fitted on these images, so calibrated figures would be too good
            result["val"] = bootstrap.intervals(bootstrap.replicate(
                val.probabilities, resampling(val, settings), names, bins=settings.bins, rarest=rarest))
        result["calibration"] = calibration_of(test, calibrated, choices.temperature, settings.bins)
        result["operating_points"] = test_points(choices.points, test, draws)
        if not choices.temperature.ok:
            undefined = dict.fromkeys(("value", "lo", "hi"), float("nan"))
            result["test"].update({f"{name}_calibrated": {**undefined} for name in CALIBRATED})
    return Evaluated(test, result, values)


def resampling(test, settings):
    """The bootstrap.Draws of Predictions; the same images get the same draws."""
    return bootstrap.draws(test.labels, test.clusters, len(test.class_names), settings.replicates)


def rarest_class(test):
    """The number of the class of Predictions `test` that macro_f1_without_rarest leaves out, or None.

    Of test: all models of a test set leave out the same class, on validation, too.
    """
    return metrics.rarest_class(np.bincount(test.labels, minlength=len(test.class_names)), test.class_names)


def conventions(test, majority, settings):
    """How the figures of metrics.json are computed. majority: the name of the class that the majority rule gives."""
    rarest = rarest_class(test)
    stated = {"level": estimate.LEVEL, "interval": INTERVALS,
              "replicates": settings.replicates, "clusters": "image" if test.groups is None else "group",
              "n_clusters": test.size()["groups"], "seed": bootstrap.SEED, "majority_class": majority,
              "rarest_class": None if rarest is None else test.class_names[rarest],
              "bins": settings.bins, "closed": "right"}
    return {**stated, **({"note": test.note} if test.note else {}), **({"folds": test.folds} if test.folds else {})}


def calibration_of(test, calibrated, fit, bins):
    """Temperature; whether ECE shows miscalibration, and reliability, on test before and after it; null without a fit.

    calibrated: probabilities [n, C] after the temperature, or None. fit: calibration.Temperature.
    """
    reliability = {"raw": calibration.reliability(test.labels, test.probabilities, bins),
                   "calibrated": calibration.reliability(test.labels, calibrated, bins) if fit.ok else None}
    index, _ = bootstrap.clusters(test.clusters)
    consistency = {name: calibration.consistency(test.labels, probabilities, index, bins)
                   for name, probabilities in (("raw", test.probabilities), ("calibrated", calibrated))
                   if probabilities is not None}
    return {"temperature": fit.value if fit.ok else None, "bounds": [fit.lo, fit.hi], "reason": fit.reason,
            "bins": bins, "closed": "right", "nll_val_before": fit.nll_before,
            "nll_val_after": fit.nll_after if fit.ok else None, "consistency": consistency,
            "reliability": reliability}


def test_points(points, test, draws):
    """The operating points with their figures on test, each a METRIC.

    shortfall: how far sensitivity is below, or the error rate above, what was promised on validation. A threshold may
    be an array [n], one for each image.
    """
    tested = []
    for point in points:
        kind, threshold, shortfall = point["kind"], point["threshold"], None
        if kind == "sensitivity":
            k = test.class_names.index(point["class"])
            masks = operating_points.masks(test.labels == k, test.probabilities[:, k] >= threshold)
            figures = rates(masks, draws, is_defined=not np.any(np.isnan(threshold)))
            metric = figures["sensitivity"]
            shortfall = {**metric, "value": point["promised"] - metric["value"], "lo": point["promised"] - metric["hi"],
                         "hi": point["promised"] - metric["lo"]}
        elif kind == "abstention":
            figures = rates(operating_points.selective_masks(*certainty(test), threshold), draws)
            metric = figures["risk"]
            shortfall = {**metric, **{bound: metric[bound] - point["promised"] for bound in ("value", "lo", "hi")}}
        else:
            figures = bootstrap.intervals(decisions(test, np.array(list(threshold.values())), draws))
        tested.append({**point, "shortfall": shortfall, "test": figures})
    return tested


def rates(masks, draws, is_defined=True):
    """{NAME: METRIC} of {NAME: (hits, among)}; undefined where a threshold is: nothing was promised."""
    if not is_defined:
        return {name: dict.fromkeys(("value", "lo", "hi"), float("nan")) for name in masks}
    return bootstrap.intervals(draws.rates(masks))


def risk_coverage(test, points=101):
    """The risk-coverage curve at up to `points` coverages, evenly spaced; both are shares from 0 to 1."""
    coverage, risk = operating_points.risk_coverage(*certainty(test))
    places = np.unique(np.linspace(0, len(coverage) - 1, points).round().astype(int))
    return {"coverage": coverage[places].tolist(), "risk": risk[places].tolist()}


# ---- over seeds


def over_seeds(evaluated):
    """Write seeds.json for each model of several seeds, all of which were evaluated on one test set.

    evaluated: {seed's folder: Evaluated}. Returns {model's folder: content of its seeds.json}.
    """
    written = {}
    for model in dict.fromkeys(folder.parent for folder in evaluated):
        folders = [folder for folder in runs.find(model) if folder.parent == model]
        if len(folders) < 2 or not all(folder in evaluated for folder in folders):
            continue
        seeds = [evaluated[folder] for folder in folders]
        first = seeds[0]
        if any(difference_between(seed.test, first.test) for seed in seeds):
            continue
        names = [name for name in first.values if all(name in seed.values for seed in seeds)]
        content = {"seeds": [runs.describe(folder)[2].removeprefix("seed_") for folder in folders],
                   "conventions": first.result["conventions"],
                   "test": {name: over_seeds_of([seed.values[name] for seed in seeds]) for name in names}}
        if all(seed.fidelity for seed in seeds):
            teachers = dict.fromkeys(seed.result["fidelity"]["teacher"] for seed in seeds)
            content["fidelity"] = {"teachers": list(teachers), "test": {
                name: over_seeds_of([seed.fidelity[name] for seed in seeds]) for name in first.fidelity}}
        write_json(model / "seeds.json", content)
        written[model] = content
    return written


def over_seeds_of(estimates):
    """{"mean", "sd", "lo", "hi", "values"} of the Estimates of one metric of k seeds, on the same images.

    The interval contains both sources of variance: which images were drawn, and which seeds. sd is the standard
    deviation over seeds with divisor k - 1; with one seed, sd and the interval are NaN.
    """
    values = [estimate.value for estimate in estimates]
    mean, nan = float(np.mean(values)), float("nan")
    if len(values) < 2 or np.isnan(values).any():
        return {"mean": mean, "sd": nan, "lo": nan, "hi": nan, "values": values}
    metric = type(estimates[0]).mean(estimates, trainings=True).metric()
    lo, hi = np.minimum(metric["lo"], mean), np.maximum(metric["hi"], mean)  # that of a DebiasedError is of squares
    reason = {"withheld": metric["withheld"]} if "withheld" in metric else {}
    return {"mean": mean, "sd": float(np.std(values, ddof=1)), "lo": float(lo), "hi": float(hi), **reason,
            "values": values}
