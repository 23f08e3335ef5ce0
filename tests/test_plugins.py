"""A plugin is code: it is executed where the user has named it, and never because a folder from elsewhere says so."""

import pytest

from kd import plugins
from kd.errors import UserError
from kd.files import write_json, write_yaml


class Registry:
    """One part that its plugin registers; notes which files were executed."""

    def __init__(self):
        self.executed = []

    def get(self, kind, name):
        if not self.executed:
            raise LookupError(f"unknown {kind} {name!r}; did you mean other?\nThere are: other.")

    def load_plugin(self, file):
        self.executed.append(str(file))


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """As in a new process of a user who has named no plugin yet."""
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return Registry()


@pytest.fixture
def run(tmp_path):
    """The folder of a run that was trained with a plugin, which lies in it: as a stranger would send it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.py").write_text("raise SystemExit")
    write_json(folder / "environment.json", {"plugins": plugins.record([folder / "mine.py"])})
    write_yaml(folder / "config.yaml", {"plugin": [str(folder / "mine.py")]})
    return folder


def refused(words, run, registry):
    with pytest.raises(UserError, match=words) as caught:
        plugins.provide("architecture", "mine", run, registry)
    assert not registry.executed and caught.value.message.startswith("unknown architecture 'mine': ")
    return caught.value.hint


def test_a_file_that_the_user_never_named_is_not_executed(run, registry):
    hint = refused("which was not used on this machine before", run, registry)
    assert hint.startswith("It is executed as a program: look at it") and hint.endswith(f"--plugin {run / 'mine.py'}")
    with pytest.raises(UserError, match="the file of options names the plugin .* not used on this machine"):
        plugins.load_of_config([run / "mine.py"], registry)
    assert not registry.executed


def test_what_the_user_has_named_is_found_again_and_a_line_says_so(run, registry, monkeypatch, capsys):
    plugins.load([run / "mine.py"], registry)
    assert len(registry.executed) == 1 and not capsys.readouterr().err
    for again in (lambda new: plugins.provide("architecture", "mine", run, new),
                  lambda new: plugins.load_of_config([run / "mine.py"], new)):
        monkeypatch.setattr(plugins, "_loaded", set())
        new = Registry()
        again(new)
        assert new.executed == [str(run / "mine.py")]
        assert capsys.readouterr().err.startswith(f"plugin: {run / 'mine.py'}, as ")
    assert plugins.place().read_text().count("\n") == 1  # named once, though named again
    plugins.load([run / "mine.py"], registry)
    assert plugins.place().read_text().count("\n") == 1


def test_another_content_or_place_is_an_error_with_a_way_out(run, registry, monkeypatch, tmp_path):
    plugins.load([run / "mine.py"], Registry())
    monkeypatch.setattr(plugins, "_loaded", set())
    (run / "mine.py").write_text("evil")
    assert f"--plugin {run / 'mine.py'}" in refused("has changed since", run, registry)
    (run / "mine.py").rename(tmp_path / "moved.py")
    assert "--plugin FILE" in refused("is no longer there", run, registry)
    (tmp_path / "moved.py").write_text("raise SystemExit")
    plugins.load([tmp_path / "moved.py"], registry)  # the same content from another place
    plugins.provide("dataset", "mine", run, registry)
    assert registry.executed == [str(tmp_path / "moved.py")]


@pytest.mark.parametrize("content", ["x", [1], [{"path": "a.py"}], [{"path": 3, "sha256": "0" * 64}],
                                     [{"path": "a.py", "sha256": "short"}]])
def test_a_damaged_record_is_one_line(run, registry, content):
    write_json(run / "environment.json", {"plugins": content})
    with pytest.raises(UserError, match="is damaged: its plugins are not paths with their sha256"):
        plugins.provide("architecture", "mine", run, registry)


def test_an_older_run_names_its_plugin(run, registry):
    write_json(run / "environment.json", {})
    with pytest.raises(UserError, match="^error: unknown architecture 'mine'\n.* add --plugin") as caught:
        plugins.provide("architecture", "mine", run, registry)
    assert str(run / "mine.py") in caught.value.hint
    (run / "config.yaml").unlink()
    with pytest.raises(LookupError, match="There are"):
        plugins.provide("architecture", "mine", run, registry)


def test_without_a_place_to_write_a_plugin_is_loaded_all_the_same(run, registry, monkeypatch, tmp_path):
    (tmp_path / "user").write_text("a file")
    plugins.load([run / "mine.py"], registry)
    assert registry.executed
