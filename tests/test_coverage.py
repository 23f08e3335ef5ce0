"""How often 95% intervals hold the truth, and promises are kept, in the simulation of docs/intervals.md."""

import numpy as np
import pytest

from benchmarks import coverage
from kd import bootstrap

SETS = 200
NOMINAL = {"difference": .94, "gap": .93, "seeds": .94, "folds": .94, "promise": .9}  # of others .93
DESIGNS = [(7, 115, "random", 1.0), (7, 350, "random", 1.5), (2, 115, "random", 1.5), (40, 350, "random", 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize("classes, lesions, drawn, factor", DESIGNS)
def test_intervals_hold_the_truth_as_often_as_they_say(classes, lesions, drawn, factor, capsys):
    counts = coverage.simulate(coverage.Population(classes, factor), lesions, drawn == "stratified", SETS, 300)
    shares = {name: held / total for name, (held, total) in counts.items() if total >= SETS / 3}
    with capsys.disabled():
        print(f"\n{classes} classes, {lesions} lesions, factor {factor}:",
              ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    assert {"accuracy", "nll", "rms_ce_debiased", "difference of macro_f1", "promise"} <= shares.keys()
    below = {}
    for name, share in shares.items():
        nominal = NOMINAL.get(name.split()[0].strip(","), .93)
        sets = min(counts[name][1], SETS)  # figures of several classes of one set are not independent
        if share < nominal - 3.5 * (nominal * (1 - nominal) / sets) ** .5:  # Monte-Carlo error of a hundred shares
            below[name] = share
    assert not below


@pytest.mark.slow
def test_intervals_over_images_are_too_narrow_where_images_of_a_lesion_are_alike():
    population, rng, held = coverage.Population(7, 1.0), np.random.default_rng(0), []
    truth = coverage.Truth(population)
    for _ in range(SETS):
        labels, lesion, (probabilities, _) = population.sample(rng, 350, False)
        accuracy = truth.figures(labels, lesion, False)["accuracy"]
        for groups in (lesion, np.arange(len(labels))):
            draws = bootstrap.Draws(labels, groups, 7, 300)
            metric = bootstrap.overall(probabilities.argmax(1), draws)["accuracy"].metric()
            held.append(metric["lo"] <= accuracy <= metric["hi"])
    by_lesion, by_image = np.reshape(held, (SETS, 2)).mean(0)
    assert by_image < by_lesion - .01


def test_the_simulated_classifiers_are_calibrated_or_over_confident_and_equally_good():
    rng = np.random.default_rng(0)
    for factor, gap in ((1.0, 0), (1.5, .06)):
        population = coverage.Population(7, factor)
        labels, lesion, models = population.sample(rng, 20_000, False)
        assert len(lesion) > 1.2 * 20_000
        accuracies = [(p.argmax(1) == labels).mean() for p in models]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=.01)
        assert models[0].max(1).mean() - accuracies[0] == pytest.approx(gap, abs=.02)
