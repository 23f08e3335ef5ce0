"""What a message tells its reader to do leads out: options exist, and commands that are done as printed arrive."""

import ast
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import registry
from kd import errors, text
from kd.errors import UserError, suggestion
from kd.files import read_json, write_yaml
from kd.study import plan
from kd.train import checkpoint, engine, loop
from kd.train.options import parse_options

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("[!_]*.py"))
pytestmark = pytest.mark.usefixtures("no_report")


def parser(script):
    if script != "predict":
        return importlib.import_module(script).parser()
    found = []  # predict.py reads its command line in one function

    class Found(errors.Parser):
        def parse_args(self, argv=None, namespace=None):
            found.append(self)
            raise UserError("")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError):
        patch.setattr(errors, "Parser", Found)
        importlib.import_module("predict").parse([])
    found[0].__class__ = errors.Parser
    return found[0]


FLAGS = {script: set(parser(script)._option_string_actions) for script in SCRIPTS}


# ---- all texts: the options in them exist in the scripts that show them

TRAINING = ("train_teacher", "distill")
SHOWN_BY = {  # module or folder -> scripts whose users read its texts; the longest match counts
    **{f"{script}.py": (script,) for script in SCRIPTS},
    "kd/objective.py": TRAINING, "kd/losses.py": TRAINING, "kd/train": TRAINING,
    "kd/data": TRAINING,  # setup.data_of_run() has words for others
    "registry": TRAINING, "registry/datasets": (*TRAINING, "evaluate"), "kd/data/cache.py": (*TRAINING, "evaluate"),
    "kd/bootstrap.py": ("evaluate", "robustness"), "kd/evaluation": ("evaluate",),
    "kd/evaluation/near_majority.py": TRAINING,
    "kd/predictions.py": ("evaluate",), "kd/robustness": ("robustness",), "kd/edge": ("export",),
    "kd/train/teachers.py": ("distill",), "kd/data/batching.py": ("distill",),
    "kd/train/unlabelled_data.py": ("distill",), "kd/data/unlabelled.py": ("distill",),
    "kd/edge/torch_model.py": ("benchmark",), "kd/onnx_model.py": ("predict",), "kd/report": ("report",),
    "kd/executorch_model.py": ("predict",),
    "kd/audit": ("evaluate",), "kd/study": ("study",), "kd/score_kinds.py": ("evaluate",),
    "kd/score_columns.py": ("evaluate",), "kd/prediction_files.py": ("evaluate",),
    "kd/files.py": ("train_teacher", "distill", "evaluate", "report", "robustness"),
    "kd/corruptions.py": ("robustness",), "kd/plugins.py": (*TRAINING, "evaluate", "export", "robustness", "benchmark"),
}
# Options of one script, about which others say nothing, though they share the module.
ITS_OWN = {"--soft", "--beta", "--term", "--temperature", "--stage-weights", "--teacher-cache", "--class-map"}
SKIPPED = {"kd/errors.py", "kd/edge/bundle.py", "kd/machine.py"}  # chosen by the script's options; a box; git


def literals(path):
    """(line, text) of each string of a file, with {} for what is filled in; docstrings and comments are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and node.body
                  and isinstance(node.body[0], ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | inside):
            yield node.lineno, node.value


def texts():
    for path in sorted([*ROOT.glob("*.py"), *(ROOT / "kd").rglob("*.py"), *(ROOT / "registry").rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        if name not in SKIPPED:
            for line, literal in literals(path):
                yield name, line, literal


def test_every_option_in_a_text_exists_in_the_scripts_that_show_it():
    wrong, count = [], 0
    for name, line, literal in texts():
        named = set(re.findall(r"\b(\w+)\.py\b", literal)) & set(SCRIPTS) or (
            TRAINING if "python {} " in literal else ())
        owner = max((place for place in SHOWN_BY if name == place or name.startswith(f"{place}/")), key=len, default="")
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b", literal):
            count += 1
            if named:  # a command of a script, or a sentence about it
                fits = any(flag in FLAGS[script] for script in named)
            elif flag in ITS_OWN or literal == flag or flag == "--sans":  # a word of a command, a style
                fits = flag == "--sans" or any(flag in known for known in FLAGS.values())
            else:
                fits = owner and all(flag in FLAGS[script] for script in SHOWN_BY[owner])
            if not fits:
                wrong.append(f"{name}:{line}: {flag} in {literal!r}")
    assert not wrong, "\n".join(wrong)
    assert count > 100


def test_every_script_in_a_text_exists():
    for name, line, literal in texts():
        for script in re.findall(r"\bpython (\w+)\.py", literal):
            assert script in SCRIPTS, f"{name}:{line}: {literal}"


# ---- suggestions for unknown options

@pytest.mark.parametrize("script, wrong, right", [
    ("train_teacher", ["--early-stopping", "3"], ["--patience", "3"]),
    ("train_teacher", ["--early_stop=3"], ["--patience", "3"]),
    ("train_teacher", ["--learning-rate", "0.1"], ["--lr", "0.1"]),
    ("distill", ["--batch_size", "8"], ["--batch", "8"]),
    ("distill", ["--num-epochs", "8"], ["--epochs", "8"]),
    ("distill", ["--epoch", "8"], ["--epochs", "8"]),
    ("distill", ["--num-workers", "2"], ["--workers", "2"]),
    ("distill", ["--img-size", "32"], ["--size", "32"]),
    ("distill", ["--output-dir", "x"], ["--out", "x"]),
    ("distill", ["--dataset", "lesions"], ["--data", "lesions"]),
    ("distill", ["--data-dir", "x"], ["--root", "x"]),
    ("distill", ["--model", "tiny"], ["--student", "tiny"]),
    ("train_teacher", ["--model", "tiny"], ["--teacher", "tiny"]),
    ("distill", ["-T", "2"], ["--temperature", "2"]),
    ("distill", ["--tau", "2"], ["--temperature", "2"]),
    ("distill", ["--teacher-ckpt", "x"], ["--teacher", "x"]),
    ("distill", ["--wd", "0.1"], ["--weight-decay", "0.1"]),
    ("distill", ["--pretrained"], ["--weights", "imagenet"]),
    ("distill", ["--fp16"], ["--precision", "fp16"]),
    ("distill", ["--gpus", "1"], ["--device", "cuda"]),
    ("robustness", ["--use_cuda"], ["--device", "cuda"]),
    ("distill", ["--label-smoothing"], ["--hard", "ce,smoothing=0.1"]),
    ("distill", ["--plugins", "x"], ["--plugin", "x"]),
    ("study", ["--parallel", "2"], ["--jobs", "2"]),
    ("evaluate", ["--bootstrap", "200"], ["--replicates", "200"]),
    ("benchmark", ["--batch-size", "2"], ["--batch", "2"]),
    ("predict", ["--batch-size", "2"], ["--batch", "2"]),
    ("export", ["--output-dir", "x"], ["--bundle", "x"]),
    ("export", ["--quantize"], ["--formats", "int8"]),
])
def test_the_option_that_is_suggested_does_instead(script, wrong, right):
    positional = {"train_teacher": [], "distill": [], "predict": ["m.onnx", "a.png"]}.get(script, ["x"])
    with pytest.raises(UserError) as caught:
        parser_of = parser(script)
        parser_of.parse_args([*positional, *wrong])
    words = caught.value.hint.removeprefix("did you mean ").removesuffix("?").split()
    values = wrong[0].split("=")[1:] + wrong[1:]
    repaired = words if len(words) > 1 else [*words, *values]
    assert repaired == right
    parser_of.parse_args([*positional, *repaired])


@pytest.mark.parametrize("script, flag, words", [
    ("train_teacher", "--resume", "The same command goes on"), ("study", "--resume", "The same command goes on"),
    ("distill", "--metric", "did you mean --select"), ("evaluate", "--metric", "Every metric is computed"),
    ("distill", "--seed", "--seeds N is of the training"), ("distill", "--kd-weight", "--alpha X weighs the labels"),
    ("train_teacher", "--optimizer", "AdamW"), ("distill", "--checkpoint", "--init FILE starts from a best.pt"),
])
def test_what_is_no_option_here_is_explained(script, flag, words):
    with pytest.raises(UserError) as caught:
        parser(script).parse_args(["x", flag] if script in ("study", "evaluate") else [flag])
    assert words in caught.value.hint


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_suggestion_is_an_option_of_the_script_and_nonsense_has_none(script):
    flags = parser(script).flags()
    words = {word for entry in errors.MEANINGS for word in entry[0].split()}
    for word in [*words, "resume"]:
        named = re.findall(r"(?<![\w-])--[a-z-]+[a-z]", suggestion(f"--{word}", flags, f"{script}.py"))
        assert set(named) <= {*flags, "--soft", "--term"}, word
    for nonsense in ("--xyzzy", "--verbose-logging", "--quux=3", "--foo", "-q", "--debug"):
        assert suggestion(nonsense.split("=")[0], flags, f"{script}.py") == ""
    if f"{script}.py" not in errors.RESUMING:
        assert "same command" not in suggestion("--resume", flags, f"{script}.py")


def test_a_hidden_option_is_not_suggested():
    assert "--probe" in FLAGS["benchmark"] and "--probe" not in suggestion("--prob", parser("benchmark").flags())


def test_a_key_of_a_file_is_understood_like_an_option(tmp_path):
    for key, meant in (("learning_rate", "lr"), ("batch-size", "batch"), ("early_stopping", "patience"), ("zzz", "")):
        write_yaml(tmp_path / "mine.yaml", {key: 1})
        with pytest.raises(UserError) as caught:
            parse_options(parser("distill"), ["--config", str(tmp_path / "mine.yaml")])
        assert caught.value.hint == f"did you mean {meant}?" if meant else "Known are" in caught.value.hint


def test_a_hint_of_the_system_names_only_options_of_the_script():
    for script in SCRIPTS:
        flags = parser(script).flags()
        for error in (MemoryError(), RuntimeError("can't start new thread"), OSError(27, "File too large", "x"),
                      OSError(28, "No space left on device", "x"), PermissionError(13, "Permission denied", "x")):
            hint = errors.of_user(error, flags=flags).hint
            assert hint and set(re.findall(r"--[a-z-]+[a-z]", hint)) <= set(flags)


# ---- `~`

def test_a_path_below_home_is_found_without_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    home = str(tmp_path)
    write_yaml(tmp_path / "options.yaml", {"root": "~/images", "plugin": ["~/a.py", "b.py"], "name": "a~b"})
    for argv in (["--root=~/images", "--plugin", "~/a.py", "b.py", "--name=a~b"], ["--config=~/options.yaml"],
                 ["--config", "~/options.yaml"]):
        options = parse_options(parser("distill"), argv)
        assert options["root"] in (f"{home}/images", f"{home}\\images") and options["name"] == "a~b"
        assert options["plugin"][0].startswith(home) and options["plugin"][1] == "b.py"
    assert parser("evaluate").parse_args(["~/theirs.npz"]).paths[0].startswith(home)


def test_a_plan_may_name_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "notes.md").write_text("x")
    content = {"data": "folder", "root": "~/images", "out": "~/studies", "report": {"notes": ["~/notes.md"]},
               "distill": {"student": ["tiny"], "teacher": "~/teacher", "methods": {"kd": {"alpha": 0.5}}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    read = plan.read_plan(tmp_path / "mine.yaml", {name: parser(name) for name in plan.SECTIONS})
    task = read.training[0]
    assert read.folder == tmp_path / "studies" / "mine" and task.run.is_relative_to(read.folder)
    assert read.notes == [tmp_path / "notes.md"] and task.inputs[0] == tmp_path / "teacher" / "best.pt"
    assert "~" not in " ".join(task.arguments)


# ---- real situations: the command fails, the reader does as it says, and arrives

DATA = ["--data=lesions,images=150", "--size=16", "--epochs=1", "--out=my runs", "--study=s", "--cache=cache"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a study whose teacher and student are trained."""
    folder = tmp_path_factory.mktemp("some place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert do("train_teacher", *DATA, "--teacher=tiny", "--train-only")[0] == 0
        assert do("distill", *DATA, "--student=tiny", "--name=x", "--train-only")[0] == 0
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


TEACHER, STUDENT = "my runs/s/teacher_tiny/seed_0", "my runs/s/x/seed_0"


def do(script, *argv):
    """(status, output and message as one text) of a script, as a user starts it."""
    import contextlib
    import io
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, argv)])
        try:
            errors.run(importlib.import_module(script).main, registry.RegistryError)
            status = 0
        except SystemExit as stopped:
            status = stopped.code or 0
    return status, out.getvalue()


def command_in(message):
    """[script, words ...] of the last command in a text: it stands at the end of a line, before a comment at most."""
    found = re.findall(r"python (\w+)\.py ([^\n]*)", message)
    assert found, message
    script, rest = found[-1]
    return [script, *shlex.split(rest, comments=True)]


def arrives(command, *more):
    status, message = do(*command, *more)
    assert status == 0, f"{command}: {message}"
    return message


def fails(words, *command):
    status, message = do(*command)
    assert status == 2 and re.search(words, message), message
    return message


@pytest.mark.parametrize("script, run, more", [
    ("train_teacher", TEACHER, ["--teacher=tiny"]),
    ("distill", STUDENT, ["--student=tiny", "--name=x", f"--teacher={TEACHER}"])])
def test_a_finished_run_is_trained_on_as_a_run_of_its_own(script, run, more, here):
    message = fails("epochs was 1, now 2", script, *DATA, *more, "--epochs=2")
    command = command_in(message)
    assert command[0] == script and "In a plan: " in message
    arrives(command, "--train-only")
    name = Path(run).parent.name
    longer = here / "my runs/s" / f"{name}_2" / "seed_0"
    old, new = (checkpoint.read(folder / "best.pt") for folder in (here / run, longer))
    began = new["provenance"]["init"]
    assert began == read_json(longer / "environment.json")["init"]
    assert Path(began["file"]) == Path(run) / "best.pt" and began["epoch"] == old["provenance"]["epoch"] == 1
    assert re.fullmatch("[0-9a-f]{16}", began["weights"])
    assert "left as it is" in arrives(command, "--train-only")  # the same command again
    command = command_in(fails("epochs was 2, now 3", *command, "--epochs=3", "--train-only"))
    arrives(command, "--train-only")  # and further on: where it began, and where that began
    last = checkpoint.read(longer.parent.with_name(f"{name}_2_3") / "seed_0" / "best.pt")["provenance"]["init"]
    assert last["init"] == began


def test_each_seed_is_trained_on_from_its_own_weights(here):
    start = ["train_teacher", *DATA, "--teacher=tiny", "--name=seeds", "--seeds", "0", "1", "--train-only"]
    arrives(start)
    message = fails("epochs was 1, now 2", *start, "--epochs=2")
    commands = [[script, *shlex.split(rest)] for script, rest in re.findall(r"python (\w+)\.py ([^\n]*)", message)]
    assert len(commands) == 2 and "`init:" in message and "begin anew" in message
    for seed, command in enumerate(commands):
        arrives(command, "--train-only")
        began = checkpoint.read(here / f"my runs/s/seeds_2/seed_{seed}/best.pt")["provenance"]["init"]
        assert Path(began["file"]) == Path(f"my runs/s/seeds/seed_{seed}/best.pt")


def test_fewer_epochs_are_a_run_of_their_own(here):
    arrives(["train_teacher", *DATA, "--teacher=tiny", "--epochs=2", "--name=two", "--train-only"])
    message = fails("epochs was 2, now 1", "train_teacher", *DATA, "--teacher=tiny", "--name=two")
    name = re.search(r"(--name) (\S+),", message).groups()
    arrives(["train_teacher", *DATA, "--teacher=tiny", "--train-only", *name])


def test_a_run_that_has_begun_is_ended_first(here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_write_predictions", lambda *args: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            do("train_teacher", *DATA, "--teacher=tiny", "--name=begun", "--train-only")
    message = fails("epochs was 1, now 3", "train_teacher", *DATA, "--teacher=tiny", "--name=begun", "--epochs=3")
    again = ["train_teacher", *DATA, "--teacher=tiny", "--name=begun", "--train-only"]
    arrives([*again, *re.search(r"(--epochs) (\d+)", message).groups()])


def test_pretrained_weights_do_not_stand_in_the_way_of_training_on(here):
    state = {key: value for key, value in checkpoint.read(Path(TEACHER) / "best.pt")["state_dict"].items()}
    torch.save(state, "theirs.pth")
    start = ["train_teacher", *DATA, "--teacher=tiny", "--name=tuned", "--weights=theirs.pth", "--train-only"]
    arrives(start)
    command = command_in(fails("epochs was 1, now 2", *start, "--epochs=2"))
    assert command[-2:] == ["--weights", "none"]
    arrives(command)


def test_a_plan_that_trains_on_is_written_as_the_message_says(here):
    content = {"data": "lesions,images=150", "size": 16, "epochs": 1, "out": "my runs", "study": "s", "cache": "cache",
               "distill": {"student": ["tiny"], "teacher": TEACHER, "methods": {"planned": {"alpha": 0.5}}}}

    def train(**of_method):
        methods = content["distill"]["methods"]
        methods.update({"planned_longer": {"alpha": 0.5, **of_method}} if of_method else {})
        Path("plan.yaml").write_text(yaml.safe_dump(content))
        tasks = plan.read_plan("plan.yaml", {name: parser(name) for name in plan.SECTIONS}).training
        return [do(task.script, *task.arguments) for task in tasks]

    assert [status for status, _ in train()] == [0]
    content["epochs"] = 2
    (status, message), = train()
    assert status == 2
    init, epochs = re.search(r"`init: (.*?)` and `epochs: (\d+)`", message).groups()
    content["epochs"] = 1
    assert [status for status, _ in train(init=init, epochs=int(epochs))] == [0, 0]


def test_a_config_of_the_other_script_names_the_command(here):
    for script, run in (("distill", TEACHER), ("train_teacher", STUDENT)):
        message = fails("has the options of another script", script, "--config", f"{run}/config.yaml")
        assert "left as it is" in arrives(command_in(message), "--train-only")


def test_weights_and_init_name_each_other(here):
    best = f"{TEACHER}/best.pt"
    start = ["train_teacher", *DATA, "--teacher=tiny", "--train-only"]
    message = fails("is a checkpoint of this project", *start, "--weights", best, "--name=a1")
    arrives([*start, "--name=a1", *shlex.split(re.search("Give it so: (.*)", message)[1])])
    torch.save(checkpoint.read(best)["state_dict"], "foreign.pth")
    script, *words = command_in(fails("is no checkpoint of this project", *start, "--init=foreign.pth", "--name=a2"))
    arrives([script, *start[1:], "--name=a2", *[word.replace("FILE", "foreign.pth") for word in words]])
    message = fails("both say where to start", *start, "--init", best, "--weights=foreign.pth", "--name=a3")
    arrives([*start, "--init", best, "--weights=foreign.pth", "--name=a3",
             *re.search("(--weights) (none)", message).groups()])


def test_a_loss_that_is_named_under_the_wrong_option_names_the_right_one(here):
    start = ["distill", *DATA, "--student=tiny", f"--teacher={TEACHER}", "--train-only", "--name"]
    message = fails("reads a teacher", *start, "b1", "--hard=dkd" if "dkd" in registry.table() else "--hard=kd")
    arrives([*start, "b1", *re.search(r"give (--soft) (\w+)\.", message).groups()])
    message = fails("reads no teacher", *start, "b2", "--soft=focal")
    arrives([*start, "b2", *re.search(r"give (--hard) (\w+)\.", message).groups()])
    message = fails("has an option of its own", *start, "b3", "--soft=kd,temperature=2")
    arrives([*start, "b3", "--soft=kd", re.search(r"Give (--\w+)", message)[1], "2"])
    message = fails("reads a teacher", "train_teacher", *DATA, "--teacher=tiny", "--hard=kd,temperature=2")
    assert "--soft" not in message and "--temperature" not in message


def test_a_network_whose_stages_are_not_known_names_four(here):
    start = ["distill", *DATA, "--student=torchvision:shufflenet_v2_x0_5", "--beta=100", f"--teacher={TEACHER}",
             "--size=32", "--study=stages", "--train-only"]
    arrives(["train_teacher", *DATA, "--teacher=tiny", "--size=32", "--study=stages", "--train-only"])
    start[4] = "--teacher=my runs/stages/teacher_tiny/seed_0"
    message = fails("the stages of torchvision:shufflenet_v2_x0_5 are not known", *start)
    words = re.search(r"--stages( [\w.]+){4}", message)[0].split()
    arrives([*start, *words])


def test_a_teacher_of_another_split_names_the_options(here):
    start = ["distill", *DATA, "--student=tiny", f"--teacher={TEACHER}", "--train-only", "--study=other", "--name"]
    fails("--split-seed, or its split.csv with --split", *start, "c2", "--split-seed=3")
    arrives([*start, "c2", "--split", f"{TEACHER}/split.csv"])


def test_of_several_teachers_one_is_chosen(here):
    shutil.copytree("my runs/s/teacher_tiny", "my runs/two/teacher_tiny")
    shutil.copytree("my runs/s/teacher_tiny", "my runs/two/teacher_tiny_b")
    start = ["distill", *DATA, "--student=tiny", "--study=two", "--train-only"]
    arrives([*start, *shlex.split(re.search("Choose one: (.*)", fails("has several teachers", *start))[1])])


@pytest.mark.parametrize("mistake, words, repair", [
    (["--device=cuda"], "there is no cuda device", r"(--device) (cpu)\."),
    (["--groups=g.csv"], "--groups has no meaning", None), (["--root=x"], "--root has no meaning", None),
    (["--study=a/b"], "becomes a folder's name", r"(--study) (\S+) would"),
    (["--out=/dev/null"], "cannot write to", r"with (--out)()"),
    (["--head-lr=1", "--student=torchvision:squeezenet1_1", "--size=32"], "head of .* is not known", None),
    (["--student=torchvision:squeezenet1_0", "--size=16"], "cannot take images of 16 px", "a larger (--size)()"),
    (["--data=folder"], "Give it with --root PATH", None),
])
def test_a_mistake_is_repaired_as_its_message_says(mistake, words, repair, here, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    start = ["distill", *DATA, "--student=tiny", f"--teacher={TEACHER}", "--train-only", "--name=d"]
    message = fails(words, *start, *mistake)
    if repair is None:  # the option is left out
        assert f"Leave out {mistake[0].split('=')[0]}" in message or "Leave it out" in message or "--root" in message
        mistake = []
    else:
        flag, value = re.search(repair, message).groups()
        mistake = [*mistake, flag, value or {"--out": "my runs", "--size": "32"}[flag]]
        if flag == "--size":
            mistake += ["--alpha=1"]  # the teacher is of another size
    arrives([*start, *mistake, "--study", f"e{abs(hash(words)) % 10 ** 6}"]
            if not any("--study" in word for word in mistake) else [*start, *mistake])


def folder(root, bad=0, lost=False):
    """A folder of two classes; some images are no images, or all of one class."""
    for name, colour in (("naevus", 60), ("melanoma", 200)):
        (root / name).mkdir(parents=True)
        for k in range(20):
            noise = np.random.default_rng((k, colour)).integers(0, 50, (20, 20, 3)).astype(np.uint8)
            Image.fromarray(noise + np.uint8(colour)).save(root / name / f"{k}.png")
    for k in range(20 if lost else bad):
        (root / "naevus" / f"{k}.png").write_bytes(b"not an image" + bytes([k]))
    return root


def test_skip_bad_is_named_where_it_helps(here):
    start = ["train_teacher", "--data=folder", "--size=16", "--epochs=1", "--teacher=tiny", "--train-only",
             "--cache=cache"]
    message = fails("3 of 40 images cannot be used", *start, "--root", folder(here / "some", bad=3))
    arrives([*start, "--root", here / "some", re.search("--skip-bad", message)[0]])
    message = fails("20 of 40 images cannot be used", *start, "--root", folder(here / "all", lost=True))
    assert "--skip-bad" not in message and "naevus has no image" in message


def test_images_that_have_moved_are_named_with_root(here):
    root = folder(here / "was")
    arrives(["train_teacher", "--data=folder", "--size=16", "--epochs=1", "--teacher=tiny", "--study=moved",
             "--cache=cache", "--root", root])
    shutil.move(root, here / "now")
    run = "runs/moved/teacher_tiny/seed_0"
    message = fails("Say with --root", "robustness", run, "--corruption=jpeg,quality=12", "--replicates=100",
                    "--cache=cache_2")
    arrives(["robustness", run, "--corruption=jpeg,quality=12", "--replicates=100", "--cache=cache_2", "--root",
             here / "now"])
    assert "--skip-bad" not in message


def test_what_robustness_needs_is_made_by_the_command_that_it_names(here):
    start = ["robustness", STUDENT, "--corruption=jpeg,quality=12", "--replicates=100"]
    (here / STUDENT / "metrics.json").unlink(missing_ok=True)
    command = command_in(fails("has no temperature and operating points", *start))
    arrives(command)
    arrives(start)


@pytest.mark.parametrize("start, more", [
    (["train_teacher", *DATA, "--teacher=tiny"], ["--student=tiny", "--epochs=1", "--train-only"]),
    (["distill", *DATA, "--student=tiny", "--name=x", f"--teacher={TEACHER}"], ["--train-only"]),
    (["evaluate", STUDENT], None), (["evaluate", "my runs/s"], ["--replicates=100"]),
])
def test_the_next_command_arrives(start, more, here):
    message = arrives(start)
    command = command_in(message)
    if more is None:
        assert command == ["report", "my runs/s"]
    else:
        arrives(command, *more)


def test_a_network_that_learned_nothing_names_commands_that_train_another(here):
    message = arrives(["train_teacher", *DATA, "--teacher=tiny", "--name=nothing", "--lr=0"])
    assert "nothing/seed_0 is near the majority rule" in message and "the learning rate 0 is far" in message
    found = re.findall(r"(?:try|or): python (\w+)\.py (.*)", message)
    commands = [[script, *shlex.split(rest)] for script, rest in found]
    for command in commands:
        arrives(command, "--train-only")
        assert (here / "my runs/s" / command[command.index("--name") + 1] / "seed_0/best.pt").exists()
    assert len(commands) == 2


def test_a_loss_that_is_no_number_names_the_command_that_goes_on(here, monkeypatch):
    step, seen = loop.predict, []

    def broken(*args):
        seen.append(0)
        logits = step(*args)
        return logits * np.nan if len(seen) > 1 else logits

    torch.save(checkpoint.read(Path(TEACHER) / "best.pt")["state_dict"], "pretrained.pth")
    start = ["distill", *DATA, "--student=tiny", "--epochs=3", "--name=nan", f"--teacher={TEACHER}", "--train-only",
             "--weights=pretrained.pth"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "predict", broken)
        message = fails("no longer gives numbers on validation", *start)
    arrives(command_in(message), "--train-only")


def test_a_command_is_quoted_as_a_shell_reads_it():
    words = ["a b", "c'd", "$HOME", "plain", Path("x y") / "z"]
    assert shlex.split(text.command("evaluate.py", *words)) == ["python", "evaluate.py", *map(str, words)]
