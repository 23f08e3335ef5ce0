"""Graphs that export.py never writes, under metadata that it does: a UserError, and no loop without end.

What is declared is checked when a file is loaded, what is computed in the first answer."""

import numpy as np
import pytest

from kd import onnx_model
from kd.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, TensorProto = onnx.helper, onnx.TensorProto
node = helper.make_node


@pytest.fixture
def write(exported, tmp_path):
    """A function that writes a model: a graph that ends in `last`, nodes behind the logits [N, C] `t`."""
    metadata = onnx_model.Model(exported[0] / "exports" / "model.onnx").metadata
    size, classes = metadata["input"]["size"], len(metadata["class_names"])

    def make(last, output=(TensorProto.FLOAT, ["N", classes]), value=None, **constants):
        constants = {"axes": np.array([1, 2, 3]), "one": np.array([1]), "times": np.array([1, classes]), **constants}
        nodes = [node("Cast", ["image"], ["f"], to=1), node("ReduceMean", ["f", "axes"], ["r"], keepdims=0),
                 node("Unsqueeze", ["r", "one"], ["u"]), node("Tile", ["u", "times"], ["t"]), *last]
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
            [value or helper.make_tensor_value_info("logits", *output)],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        for key, text in onnx_model.encode(metadata).items():
            model.metadata_props.add(key=key, value=text)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"
    return make


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        onnx_model.Model(path, 1)
    assert "\n" not in error.value.message


def fails(path, words):
    """It can be loaded, and is one line where it is first run: by predict.py, and by benchmark.py."""
    model = onnx_model.Model(path, 1)
    black = np.zeros((1, model.size, model.size, 3), np.uint8)
    for first in (model.logits, model.timer):
        with pytest.raises(UserError, match=words) as error:
            first(black)
        assert "\n" not in error.value.message


def test_the_graph_of_these_tests_is_loaded(write):
    model = onnx_model.Model(write([node("Identity", ["t"], ["logits"])]), 1)
    assert np.ptp(model.logits(np.full((2, model.size, model.size, 3), 7, np.uint8))) == 0


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.INT64, TensorProto.BOOL])
def test_logits_are_floats(write, kind):
    refused(write([node("Cast", ["t"], ["logits"], to=kind)], (kind, ["N", 3])), "its output is not what it should be")


def test_the_output_is_a_matrix(write):
    refused(write([node("ReduceMean", ["t"], ["logits"], keepdims=0)], (TensorProto.FLOAT, [])), "its output is not")
    refused(write([node("SequenceConstruct", ["t"], ["logits"])], value=helper.make_tensor_sequence_value_info(
        "logits", TensorProto.FLOAT, ["N", 3])), "its output is not")


def test_what_cannot_be_run_is_one_line(write):
    fails(write([node("Div", ["t", "nothing"], ["logits"])], nothing=np.float32(0)), "logits that are no numbers")
    huge = [node("Shape", ["image"], ["s"], start=0, end=1), node("Mul", ["s", "many"], ["n"]),
            node("ConstantOfShape", ["n"], ["c"]), node("ReduceMean", ["c"], ["m"]),
            node("Add", ["t", "m"], ["logits"])]
    fails(write(huge, many=np.array([2 ** 45])), "cannot be run")


def test_a_loop_without_end_is_ended(write, monkeypatch):
    monkeypatch.setattr(onnx_model, "PATIENCE", 1)
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["v"], ["w"])], "body",
        [helper.make_tensor_value_info("k", TensorProto.INT64, []), helper.make_tensor_value_info(
            "go", TensorProto.BOOL, []), helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", TensorProto.FLOAT, None)])
    loop = node("Loop", ["trips", "true", "t"], ["logits"], body=body)
    fails(write([loop], trips=np.array(2 ** 62), true=np.array(True)), "cannot be run")


def test_only_the_first_query_of_many_images_has_a_limit_and_a_longer_one(write, monkeypatch):
    limits, timer = [], onnx_model.threading.Timer
    monkeypatch.setattr(onnx_model.threading, "Timer", lambda seconds, *rest: limits.append(seconds) or timer(
        seconds, *rest))
    model = onnx_model.Model(write([node("Identity", ["t"], ["logits"])]), 1)
    for count in (5, 7):
        model.logits(np.zeros((count, model.size, model.size, 3), np.uint8))
    assert limits == [5 * onnx_model.PATIENCE]


def test_metadata_are_text(write, capsys):
    path = write([node("Identity", ["t"], ["logits"])])
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"interpolation"', b'"interpol\x95tion"'))
    refused(path, "metadata of .* cannot be read|cannot load")
    assert not capsys.readouterr().out  # ONNX Runtime tells of a second try there, unless it makes none
