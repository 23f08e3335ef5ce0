"""A run folder may hold files of any system: what is read can be printed and drawn, or is refused in one line."""

import copy
import json

import numpy as np
import pytest

from kd.edge import bundle
from kd.errors import UserError
from kd.evaluation import protocol, subgroups
from kd.files import read_json, write_json
from kd.metrics import softmax
from kd.predictions import Predictions
from kd.run_folder import Run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A metrics.json with all its parts."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    parts = [Predictions(labels, logits, softmax(logits), np.arange(120).astype(str), None, ["a", "b", "c"])
             for logits in 2 * np.eye(3)[labels] + rng.normal(size=(2, 120, 3))]
    result = protocol.evaluate(*parts, protocol.Settings(100)).result
    result["subgroups"] = subgroups.evaluate(parts[1], {"sex": np.array(["m", "f"])[np.arange(120) % 2]},
                                             result["operating_points"][:3], protocol.Settings(100))
    path = tmp_path_factory.mktemp("run") / "metrics.json"
    write_json(path, result)
    return read_json(path)


def read(folder, content):
    (folder / "metrics.json").write_text(json.dumps(content))
    return Run(folder).metrics


PLACES = ["operating_points/0/asked", "operating_points/0/assurance", "operating_points/0/promised",
          "operating_points/0/threshold", "operating_points/0/name", "operating_points/0/kind",
          "operating_points/0/test/sensitivity/lo", "risk_coverage/risk/0", "risk_coverage/coverage/0",
          "calibration/reliability/raw/0/confidence", "calibration/reliability/raw/0/count", "calibration/temperature",
          "calibration/bounds/0", "test/accuracy/value", "test/accuracy/withheld", "split/test", "split/test/images",
          "split/test/support", "split/test/support/a", "confusion/0/0", "conventions/level",
          "subgroups/sex/subgroups/0/images", "subgroups/sex/subgroups/0/groups", "subgroups/sex/subgroups/0/name",
          "subgroups/sex/gaps/0/value", "subgroups/sex/gaps/0/gaps", "subgroups/sex/gaps/0/p"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [1e308, -1e308, [], {"images": []}], ids=repr)
def test_a_metrics_json_with_a_value_of_another_kind_is_refused_in_one_line(written, tmp_path, place, value):
    content = copy.deepcopy(written)
    assert read(tmp_path, content) == content
    *above, key = place.split("/")
    part = content
    for step in above:
        part = part[int(step) if isinstance(part, list) else step]
    part[int(key) if isinstance(part, list) else key] = value
    with pytest.raises(UserError, match="is not what evaluate.py writes for 3 classes") as error:
        read(tmp_path, content)
    assert "\n" not in error.value.message


def test_what_is_undefined_or_not_there_in_a_metrics_json_is_read_and_printed(written, tmp_path):
    content = copy.deepcopy(written)
    for point in content["operating_points"]:
        point["assurance"] = None
    for metric in content["test"].values():
        metric.update(value=None, lo=None, hi=None)
    del content["split"]
    metrics = read(tmp_path, content)
    assert "n/a" in "\n".join(bundle.metrics_table(metrics))
    assert all("assurance" not in line for line in bundle.points_table(metrics))
