"""A plugin file in its folder or named by its path is registered; a faulty one is an error only when it is needed."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import registry

REGISTRY = Path(registry.__file__)
LOSS = """
    from registry import register
    @register("loss", "{name}")
    def mine(student_logits, labels, *, gamma=1.0):
        "{name} of {file}."
"""


class Project:
    """A project of its own in a folder, with a registry and plugins only."""

    def __init__(self, folder):
        self.folder = folder
        for kind in registry.KINDS.values():
            (folder / "registry" / kind).mkdir(parents=True)
        shutil.copy(REGISTRY, folder / "registry")

    def write(self, path, text):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    def loss(self, path, name):
        return self.write(path, LOSS.format(name=name, file=Path(path).name))

    def run(self, code, cwd=None):
        """What `code` prints in a new process, or its standard error if it prints nothing."""
        start = f"import sys; sys.path[:1] = [{str(self.folder)!r}]\nimport registry\n"
        done = subprocess.run([sys.executable, "-c", start + textwrap.dedent(code)], cwd=cwd or self.folder,
                              capture_output=True, text=True, encoding="utf-8")
        return done.stdout.strip() or done.stderr.strip()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def test_a_file_in_its_folder_is_registered(project):
    project.loss("registry/losses/mine.py", "my_loss")
    output = project.run("print(registry.get('loss', 'my_loss').make.__name__, registry.names('loss'))")
    assert output == "mine ['my_loss']"


def test_a_file_named_by_its_path_is_registered_and_may_be_named_twice(project):
    file = project.loss("elsewhere/mine.py", "my_loss")
    file.write_text(file.read_text() + "\nprint('once')\n")
    assert project.run("""
        registry.load_plugin("elsewhere/mine.py")
        registry.load_plugin("./elsewhere/../elsewhere/mine.py")
        print(registry.names("loss"))
    """) == "once\n['my_loss']"


def test_two_files_of_the_same_name_in_different_folders_are_both_registered(project):
    project.loss("a/mine.py", "first")
    project.loss("b/mine.py", "second")
    assert project.run("""
        for file in ("a/mine.py", "b/mine.py", "a/mine.py"):
            registry.load_plugin(file)
        print(registry.names("loss"))
    """) == "['first', 'second']"


def test_a_file_of_the_project_may_be_named_as_well(project):
    project.loss("registry/losses/mine.py", "my_loss")
    for order in ("registry.names('loss'); registry.load_plugin(file)", "registry.load_plugin(file)"):
        assert project.run(f"file = 'registry/losses/mine.py'; {order}; print(registry.names('loss'))") == "['my_loss']"


def test_an_unknown_name_is_an_error_with_all_names_and_the_nearest():
    with pytest.raises(registry.UnknownName) as caught:
        registry.get("architecture", "resnet19")
    assert "unknown architecture 'resnet19'; did you mean resnet1" in str(caught.value)
    assert all(name in str(caught.value) for name in registry.names("architecture"))
    with pytest.raises(registry.UnknownName, match="did you mean resnet18"):
        registry.get("architecture", "ResNet_18")


@pytest.mark.parametrize("name, meant", [
    ("densenet121", "torchvision:densenet121"), ("ShuffleNet_V2_x0_5", "torchvision:shufflenet_v2_x0_5"),
    ("mobilenetv3_small_050", "timm:mobilenetv3_small_050"), ("wide-resnet50-2", "torchvision:wide_resnet50_2")])
def test_a_name_of_torchvision_or_timm_is_suggested_as_it_is_called_here(name, meant):
    if meant.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(registry.UnknownName) as caught:
        registry.get("architecture", name)
    question = str(caught.value).splitlines()[0]
    assert question.startswith(f"unknown architecture {name!r}; did you mean ") and meant in re.split("[ ?]", question)
    assert registry.create("architecture", meant, num_classes=2, stem="imagenet", weights=None)


def test_a_name_that_is_near_our_own_is_suggested_beside_that_of_a_package():
    message = str(pytest.raises(registry.UnknownName, registry.get, "architecture", "mobilenet-v3-small").value)
    assert "did you mean mobilenetv3small or " in message and " torchvision:mobilenet_v3_small" in message


def test_a_wrong_kind_is_an_error_with_all_kinds():
    with pytest.raises(registry.RegistryError, match="unknown kind 'lose'; there are: architecture, dataset, loss"):
        registry.register("lose", "x")


def test_two_plugins_under_one_name_are_an_error_with_both_paths(project):
    here = project.loss("registry/losses/mine.py", "my_loss")
    there = project.loss("elsewhere/other.py", "my_loss")
    alias = project.write("elsewhere/alias.py",
                          'from registry import register\nregister("loss", "x", "my_loss")(print)')
    for file in (there, alias):
        output = project.run(f"registry.load_plugin({str(file)!r}); registry.names('loss')")
        assert "DuplicateName: two plugins register the loss 'my_loss'" in output
        assert str(here) in output and str(file) in output
    again = project.run("""
        registry.load_plugin("elsewhere/other.py")
        for _ in range(2):
            try:
                registry.get("loss", "my_loss")
            except registry.DuplicateName:
                print("refused")
    """)
    assert again == "refused\nrefused"  # not only the first time


def test_one_file_that_gives_two_parts_one_name_is_refused_too(project):
    project.write("registry/losses/mine.py", """
        from registry import register
        @register("loss", "same")
        def one(): ...
        @register("loss", "same")
        def two(): ...
    """)
    assert "DuplicateName" in project.run("registry.names('loss')")


@pytest.mark.parametrize("fault, message", [
    ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("1 / 0", "ZeroDivisionError"), ("def (:", "SyntaxError"), ("raise SystemExit(3)", "SystemExit: 3"),
])
def test_a_plugin_that_fails_has_no_effect_until_needed_and_then_shows_its_traceback(project, fault, message):
    project.loss("registry/losses/good.py", "good")
    file = project.write("registry/losses/broken.py",
                         textwrap.dedent(LOSS.format(name="bad", file="")) + fault + "\n")
    outputs = project.run("""
        import traceback
        print(registry.get("loss", "good").name, registry.names("loss"))
        for name in ("bad", "broken", "goof"):
            try:
                registry.get("loss", name)
            except BaseException:
                print("----", traceback.format_exc())
        print("----", registry.table())
    """).split("----")
    assert outputs[0].strip() == "good ['good']"
    for output in outputs[1:3]:  # for its part, although registered before the fault, and for the name of the file
        assert message in output and str(file) in output and "Traceback" in output
    assert "unknown loss 'goof'; did you mean good?" in outputs[3] and "broken.py failed to import: " in outputs[3]
    assert "loss          broken " in outputs[4]


def test_a_family_that_fails_to_import_shows_its_traceback_for_its_members(project):
    project.write("registry/architectures/family.py", "from registry import register\n"
                  "import nothing_here\nregister('architecture', 'zoo:')(print)")
    assert "No module named 'nothing_here'" in project.run("registry.get('architecture', 'zoo:lion')")


def test_a_named_plugin_that_fails_shows_its_own_traceback(project):
    file = project.write("mine.py", "value = 1 / 0")
    output = project.run("registry.load_plugin('mine.py')")
    assert "ZeroDivisionError" in output and f'"{file}", line 1' in output


def test_a_named_plugin_that_ends_the_program_is_an_error_that_names_it(project):
    file = project.write("mine.py", "import sys\nsys.exit(0)")
    assert project.run("""
        try:
            registry.load_plugin("mine.py")
        except registry.RegistryError as error:
            print(error)
    """).startswith(f"{file} ends the program while it is imported (SystemExit: 0)\n")


def test_other_files_than_plugins_are_refused_with_a_reason(tmp_path):
    (tmp_path / "text.txt").write_text("x")
    for path, message in ((tmp_path / "gone.py", "no such plugin file"), (tmp_path, "no such plugin file"),
                          (tmp_path / "text.txt", "a plugin is a Python file")):
        with pytest.raises(registry.RegistryError, match=message):
            registry.load_plugin(path)


def test_nothing_loads_from_the_working_directory(project, tmp_path):
    trap = "raise SystemExit('the working directory was imported')"
    elsewhere = Project(tmp_path / "cwd")
    for file in ("registry/__init__.py", "registry/losses/__init__.py", "registry/losses/trap.py", "losses/trap.py",
                 "trap.py", "kd/__init__.py", "torch.py"):
        elsewhere.write(file, trap)
    project.loss("registry/losses/mine.py", "my_loss")
    assert project.run("print(registry.names('loss'))", cwd=elsewhere.folder) == "['my_loss']"


def test_a_script_started_elsewhere_loads_nothing_from_there(tmp_path):
    for file in ("registry/__init__.py", "kd/__init__.py", "torch.py", "evaluate.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("raise SystemExit('the working directory was imported')")
    done = subprocess.run([sys.executable, str(REGISTRY.parent.parent / "train_teacher.py"), "--list"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "resnet18" in done.stdout, done.stderr


def test_files_that_begin_with_an_underscore_or_a_dot_are_no_plugins(project):
    project.write("registry/losses/_shared.py", "1 / 0")
    project.write("registry/losses/._mine.py", "\0")
    assert project.run("print(repr(registry.table()))") == "''"


def test_an_alias_is_another_name_for_the_same_part():
    assert registry.get("architecture", "mobilenet_v2") is registry.get("architecture", "mobilenetv2")
    assert "mobilenet_v2" not in registry.names("architecture")


def test_a_family_is_found_under_the_names_of_its_members():
    assert registry.get("architecture", "torchvision:alexnet") is registry.get("architecture", "torchvision:")
    model = registry.create("architecture", "torchvision:squeezenet1_1", num_classes=5, stem="imagenet", weights=None)
    assert model.classifier[1].out_channels == 5
    with pytest.raises(registry.UnknownName, match="unknown architecture 'elsewhere:alexnet'"):
        registry.get("architecture", "elsewhere:alexnet")


def test_the_table_has_a_line_for_every_part(project):
    lines = registry.table().splitlines()
    assert len(lines) == sum(len(registry.names(kind)) for kind in registry.KINDS)
    for start in ("architecture  mobilenetv2 (mobilenet_v2) ", "architecture  torchvision:NAME ", "loss          kd "):
        assert sum(line.startswith(start) for line in lines) == 1
    project.write("registry/losses/mute.py", "from registry import register\nclass Base: 'Of another.'\n"
                  "class Mine(Base): pass\nregister('loss', 'mute')(Mine)")
    assert project.run("print(registry.table())") == "loss          mute"
