"""Defaults give way to the file, the file to the command line; a run's config.yaml repeats the run."""

import re

import pytest
import yaml

import distill
import train_teacher
from kd import errors
from kd.errors import UserError
from kd.files import write_json, write_yaml
from kd.train.options import argparse, claim_folder, parse_options, to_arguments

SCRIPTS = {"train_teacher": train_teacher, "distill": distill}
both = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)


@pytest.fixture
def file(tmp_path):
    """Writes a config file and returns its path."""
    def write(content):
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "my.yaml")
    return write


def parse(script, *argv):
    return parse_options(script.parser(), list(argv))


def refused(words, *argv, script=distill):
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        parse(script, *argv)
    return caught.value


def test_defaults_then_the_file_then_the_command_line(file):
    path = file("lr: 0.5\nseeds: [3, 4]\nepochs: 7\n")
    options = parse(distill, "--epochs", "9", "--config", path)
    assert (options["lr"], options["seeds"], options["epochs"]) == (0.5, [3, 4], 9)
    assert options["batch"] is None and options["alpha"] == 0.5 and "config" not in options
    assert parse(distill, f"--config={path}", "--seeds", "5")["seeds"] == [5]  # replaced, not added to


def test_the_command_line_wins_over_true(file):
    path = file("download: true\nskip_bad: true\n")
    assert parse(distill, "--config", path)["download"] is True
    options = parse(distill, "--config", path, "--no-download", "--no-skip-bad")
    assert options["download"] is False and options["skip_bad"] is False


VALUES = {
    "data": ["folder", "lesions,images=100"], "root": ["/data/with space", "-dash", None, "C:\\data", "1e3", "no"],
    "size": [64, None], "interpolation": ["bilinear", "box-bilinear"], "groups": ["groups of mine.csv"],
    "download": [True, False], "split": ["-s.csv"], "fold": ["2/5", None], "labelled": ["0.1,seed=3", None],
    "split_seed": [0, 5],
    "skip_bad": [True, False], "cache": ["a~cache", None], "stem": ["small"],
    "stages": [["layer1", "layer2", "layer3", "layer4"], None],
    "weights": ["none", "-w.pt"], "init": ["a=b.pt"], "epochs": [3, None], "batch": [1],
    "lr": [1e-5, 0.0, 3], "head_lr": [1e-2, None], "weight_decay": [0.0], "warmup": [0.0, 1.0], "clip": [0.0],
    "patience": [1], "hard": ["focal,gamma=1e-3"], "augment": ["light", "corruption", "none"],
    "seeds": [[0], [2, 1, 0], [4294967295]], "device": ["cpu"], "compile": [True, False], "precision": ["bf16", "fp16"],
    "workers": [0],
    "out": ["runs of mine", "-out"], "study": ["2024", "null"], "name": ["ünï-cödé", "-x", "true"],
    "plugin": [[], ["a.py"], ["a b.py", "c.py"], ["-dash.py"]],
    "student": [["tiny"], ["tiny", "resnet18"]], "teacher": ["runs/x/teacher_resnet18/seed_0", "resnet18", None],
    "teacher_cache": [8, None], "alpha": [0.0, 1.0, 0.3, "0.5:0.1"], "temperature": [4.0, "4.0:1.0"],
    "teacher_tau": [0.0, None], "select": ["nll"], "sampling": ["sqrt"], "ema": [0.999], "size_from": [48, None],
    "accumulate": [4], "sync_batch_norm": [True, False],
    "mixup": [0.2], "cutmix": [1.0], "unlabelled": [[], ["a b", "ham10000,root=/x y"]], "unlabelled_ratio": [0.25],
    "teacher_arch": ["resnet18,mean=[0.5, 0.5, 0.5]", None], "teacher_predictions": ["a.npz", None],
    "beta": [0.0, 1000.0],
    "stage_weights": [[1.0, 0.0, 2.5, 1e-7]], "soft": ["kd", "dkd,alpha=1,beta=8"],
    "train_only": [True, False], "term": [[], ["at=1000"], ["rkd=25", "fitnet=100,stages=[1, 2]"]],
}


@both
def test_a_runs_options_written_to_a_file_parse_to_the_same_options(script, file, tmp_path):
    known = {action.dest for action in script.parser()._actions} - {"help", "version", "config", "list"}
    assert known <= set(VALUES), "an option is not tested here"
    options = parse(script)
    for k in range(max(map(len, VALUES.values()))):
        options.update({key: values[k % len(values)] for key, values in VALUES.items() if key in known})
        if script is distill and options["teacher"]:  # one or several
            options["teacher"] = [options["teacher"], "b"][:1 + k % 2]
        write_yaml(tmp_path / "config.yaml", {key: value for key, value in options.items() if key != "list"})
        assert parse(script, "--config", str(tmp_path / "config.yaml")) == options
    write_yaml(tmp_path / "config.yaml", {key: value for key, value in parse(script).items() if key != "list"})
    assert parse(script, "--config", str(tmp_path / "config.yaml")) == parse(script)


def test_a_training_of_the_teacher_gets_the_options_that_it_shares_with_its_student(tmp_path):
    options = {**parse(distill), "study": "-my study", "seeds": [1, 2], "skip_bad": True, "teacher": "tiny"}
    passed = parse_options(train_teacher.parser(), to_arguments(train_teacher.parser(), options))
    assert passed == {key: options[key] for key in passed}


def test_keys_are_spelled_as_flags_or_as_options_and_one_value_makes_a_list(file):
    options = parse(distill, "--config", file("split-seed: 3\nweight_decay: 0.1\nseeds: 4\nlr: 1e-4\nname: 2024\n"))
    assert (options["split_seed"], options["weight_decay"], options["seeds"]) == (3, 0.1, [4])
    assert options["lr"] == 1e-4 and options["name"] == "2024"  # YAML 1.1 reads them as a text and a number


def test_null_and_an_empty_file_stand_for_the_defaults(file):
    assert parse(distill, "--config", file("lr: null\nseeds: ~\ndownload:\n")) == parse(distill)
    assert parse(distill, "--config", file("")) == parse(distill, "--config", file("# nothing\n")) == parse(distill)


def test_an_unknown_key_names_the_nearest_and_the_file(file):
    for key, words in (("epoch", "epochs"), ("Temprature", "temperature"), ("batch_size", "batch")):
        error = refused(f"my.yaml: unknown option '{key}'", "--config", file({key: 3}))
        assert error.hint == f"did you mean {words}?"
    assert "alpha" in refused("unknown option 'zzz'", "--config", file({"zzz": 3})).hint
    refused("unknown option 'alpha'", "--config", file({"alpha": 0.5}), script=train_teacher)
    for key in ("config", "help", "list", 3, None):
        refused("unknown option", "--config", file({key: "x"}))


@pytest.mark.parametrize("content, words", [
    ("lr: fast", "my.yaml: .*--lr: 'fast' is not a number"),
    ("epochs: 2.5", "my.yaml: .*'2.5' is not a whole number"),
    ("epochs: true", "epochs cannot be True"),
    ("alpha: 2", "'2' is not a number from 0 to 1"),
    ("lr: .nan", "'nan' is not"),
    ("stem: smal", "my.yaml: .*invalid choice: 'smal'"),
    ("stage_weights: [1, 2]", "expected 4"),
    ("stage_weights: 1", "expected 4"),
    ("seeds: [0, x]", "'x' is"),
    ("seeds: []", "--seeds: expected at least one"),
    ("seeds: [0, null]", "cannot be"),
    ("seeds: {a: 1}", "seeds cannot be"),
    ("lr: [0.1, 0.2]", "lr takes one value, not"),
    ("data: {folder: x}", "data cannot be"),
    ("download: 1", "download is true or false, not 1"),
    ("download: 'yes'", "true or false"),
    ("name: yes", "name cannot be True"),
    ("term: [[rkd, 25]]", "term cannot be"),
    ("- lr: 1", "not a list of `option: value` lines"),
    ("lr: [", "cannot read"),
])
def test_a_wrong_value_in_the_file_is_refused_like_a_typed_one(file, content, words):
    refused(words, "--config", file(content))


def test_a_config_file_is_named_once_and_exists(file):
    path = file("lr: 1")
    refused("--config is given twice", "--config", path, f"--config={path}")
    refused("--config: expected one argument", "--config")
    refused("no such file: .*gone.yaml", "--config", "gone.yaml")
    refused("--config is empty", "--config", "")


def test_a_number_is_finite_and_in_its_range():
    for convert, good, bad in (
            (errors.positive, ["1", "30"], ["0", "-1", "1.5", "x", "", "nan", "9" * 5000]),
            (errors.not_negative, ["0", "1e-3", "1e300"], ["-1e-9", "nan", "inf", "1e999", "x"]),
            (errors.threads, ["1", "1024"], ["0", "-1", "0.5", "1e3", "1000000"]),
            (errors.side, ["1", "4096"], ["0", "4097"]), (errors.whole(0, 7), ["0", "7"], ["-1", "8", "\0"]),
            (errors.share, ["0", "1", "0.5"], ["-0.1", "1.0001", "nan", "half"]),
            (errors.above_zero, ["1e-9", "4"], ["0", "-4", "nan", "inf"]),
            (errors.seed, ["0", "4294967295"], ["-1", "4294967296", "1.0"])):
        assert [convert(text) for text in good] == [float(text) for text in good]
        for text in bad:
            with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
                convert(text)


@pytest.mark.parametrize("role, wrong, right", [
    ("student", train_teacher, distill), ("teacher", distill, train_teacher)])
def test_a_runs_config_given_to_the_other_script_names_the_right_one(tmp_path, role, wrong, right):
    write_yaml(tmp_path / "config.yaml", {"epochs": 3})
    write_json(tmp_path / "environment.json", {"role": role})
    path = str(tmp_path / "config.yaml")
    assert parse(right, "--config", path)["epochs"] == 3
    error = refused("has the options of another script", "--config", path, script=wrong)
    assert error.hint == f"Run: python {right.__name__}.py --config {path}"


# ---- a folder belongs to the options that it was made with

def test_a_new_folder_is_free_and_the_same_options_may_go_on(tmp_path):
    options = {"lr": 1e-5, "seeds": [0], "root": None, "stage_weights": [1.0, 0.5]}
    assert claim_folder(tmp_path / "new", options) is True and not (tmp_path / "new").exists()
    write_yaml(tmp_path / "config.yaml", {"lr": 9})  # of a first try in which nothing was trained
    assert claim_folder(tmp_path, options) is True
    write_yaml(tmp_path / "config.yaml", options)
    (tmp_path / "last.pt").touch()
    assert claim_folder(tmp_path, options) is False


def test_results_without_their_options_are_not_gone_on_with(tmp_path):
    (tmp_path / "best.pt").touch()
    with pytest.raises(UserError, match="has best.pt but no config.yaml"):
        claim_folder(tmp_path, {"lr": 1})


def test_where_and_how_fast_a_run_is_made_may_change(tmp_path):
    (tmp_path / "last.pt").touch()
    write_yaml(tmp_path / "config.yaml", {"lr": 0.1, "root": "/old", "workers": 1, "device": "cuda"})
    assert claim_folder(tmp_path, {"lr": 0.1, "root": "/new", "workers": 4, "device": "cpu"}) is False
    moved = {"lr": 0.1, "split": "/moved/split.csv", "groups": "g.csv"}  # environment.json has their fingerprints
    assert claim_folder(tmp_path, moved) is False


def test_a_folder_of_other_options_is_refused_with_the_keys_that_differ(tmp_path):
    old = {"lr": 0.1, "epochs": 3, "hard": "ce", "gone": 1}
    (tmp_path / "last.pt").touch()
    write_yaml(tmp_path / "config.yaml", old)
    with pytest.raises(UserError) as caught:
        claim_folder(tmp_path, {"lr": 0.2, "epochs": 3, "hard": "ce", "added": "x"})
    assert "lr was 0.1, now 0.2; gone was 1, now None; added was None, now x" in caught.value.message
    assert "epochs" not in caught.value.message and "--name" in caught.value.hint
    (tmp_path / "config.yaml").write_text("lr: [")
    with pytest.raises(UserError, match="cannot read"):
        claim_folder(tmp_path, old)


# ---- help

@both
def test_help_shows_every_option_with_its_default(script, capsys):
    with pytest.raises(SystemExit) as exit:
        script.main(["--help"])
    output = capsys.readouterr().out
    text = " ".join(output.split())
    assert exit.value.code == 0 and "default: None" not in text
    shown = re.findall(r"\n  (?:-h, )?(--[a-z-]+)", output)
    assert len(shown) == len(set(shown)) == len(script.parser().flags()) - output.count(", --no-") - 1  # each once
    assert shown[:len(script.parser().first)] == list(script.parser().first) and len(script.parser().first) <= 10
    assert output.startswith(f"usage: {script.__name__}.py [options]\n")
    for action in script.parser()._actions:
        assert action.help and action.option_strings[0] in text
    for words in ("(default: lesions)", "(default: 0.001)", "70/10/20", "--seeds N [N ...]"):
        assert words in text
