"""What of a study has been done, with which command and on which files: study.json."""

import hashlib

from kd.errors import UserError
from kd.files import read_json, write_json


class Ledger:
    """A task is done when its command, what it read and what it wrote are as they were when it ended well.

    Files count by their content, not by their time: a copy of a study is as far as the study, and a file that is
    written again as it was makes nothing stale.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "study.json"
        self.tasks, self.known = {}, {}
        if self.path.is_file():
            try:
                held = read_json(self.path)
                self.tasks, self.known = dict(held["tasks"]), dict(held["files"])
            except (UserError, KeyError, TypeError, ValueError):
                print(f"note: {self.path} cannot be read: what was trained is looked at again, the rest is done again")

    def done(self, task):
        held = self.tasks.get(task.name)
        return (isinstance(held, dict) and held.get("command") == [task.script, *task.arguments]
                and held.get("inputs") == self.read(task) and held.get("outputs") == self.written(task))

    def enter(self, task, inputs, seconds):
        """A task has ended well. inputs: what read() said before it began."""
        self.tasks[task.name] = {"command": [task.script, *task.arguments], "inputs": inputs, "outputs": self.written(task),
                                 "seconds": round(seconds, 1)}
        write_json(self.path, {"tasks": self.tasks, "files": self.known})

    def read(self, task):
        return self._fingerprint(task.inputs)

    def written(self, task):
        """None where nothing is."""
        files = sorted({file for pattern in task.outputs for file in self.folder.glob(pattern)})
        return self._fingerprint(files) if files else None

    def _fingerprint(self, files):
        """Of names and contents; a file that is not there counts as such."""
        whole = hashlib.sha256()
        for file in files:
            place = file.relative_to(self.folder) if file.is_relative_to(self.folder) else file
            whole.update(f"{place.as_posix()}\0{self._content(place.as_posix(), file)}\0".encode())
        return whole.hexdigest()[:16]

    def _content(self, place, file):
        """Digest of a file's content, read again only where size or time have changed."""
        try:
            status = file.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            held = self.known.get(place)
            if not isinstance(held, list) or held[:2] != stamp:
                whole = hashlib.sha256()
                with open(file, "rb") as opened:
                    while part := opened.read(2 ** 20):
                        whole.update(part)
                self.known[place] = [*stamp, whole.hexdigest()[:16]]
            return self.known[place][2]
        except OSError:
            return None
