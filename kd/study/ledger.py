"""study.json: which tasks of a study are done, with which command and on which files."""

import hashlib

from kd.errors import UserError
from kd.files import read_json, write_json


class Ledger:
    """The record of the tasks that have ended well.

    A task is done when its command, its inputs and its outputs are as they were when it ended. Files count by their
    content, not by their time: a copy of a study is as far as the study, and a file that is written again with the
    same content makes nothing out of date.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "study.json"
        self.tasks, self.digests = {}, {}  # name -> record; path -> [size, time, digest]
        if self.path.is_file():
            try:
                content = read_json(self.path)
                self.tasks, self.digests = dict(content["tasks"]), dict(content["files"])
            except (UserError, KeyError, TypeError, ValueError):
                print(f"note: {self.path} cannot be read: trained runs are checked again, all other steps run again")

    def is_done(self, task):
        """Whether a Task needs not be run."""
        record = self.tasks.get(task.name)
        return (isinstance(record, dict) and record.get("command") == [task.script, *task.arguments]
                and record.get("inputs") == self.inputs(task) and record.get("outputs") == self.outputs(task))

    def record(self, task, inputs, seconds):
        """Write down that a Task has ended well. inputs: what inputs() returned before it began."""
        self.tasks[task.name] = {
            "command": [task.script, *task.arguments], "inputs": inputs, "outputs": self.outputs(task),
            "seconds": round(seconds, 1),
        }
        write_json(self.path, {"tasks": self.tasks, "files": self.digests})

    def inputs(self, task):
        """Fingerprint of the files that a Task reads."""
        return self._fingerprint(task.inputs)

    def outputs(self, task):
        """Fingerprint of the files that a Task has written, None where there are none."""
        files = sorted({file for pattern in task.outputs for file in self.folder.glob(pattern)})
        return self._fingerprint(files) if files else None

    def _fingerprint(self, files):
        """Digest of names and contents; that a file is missing counts, too."""
        fingerprint = hashlib.sha256()
        for file in files:
            name = (file.relative_to(self.folder) if file.is_relative_to(self.folder) else file).as_posix()
            fingerprint.update(f"{name}\0{self._digest(name, file)}\0".encode())
        return fingerprint.hexdigest()[:16]

    def _digest(self, name, file):
        """Digest of a file's content, read again only where size or time have changed; None for a missing file."""
        try:
            status = file.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            record = self.digests.get(name)
            if not isinstance(record, list) or record[:2] != stamp:
                digest = hashlib.sha256()
                with open(file, "rb") as opened:
                    while part := opened.read(2 ** 20):
                        digest.update(part)
                self.digests[name] = [*stamp, digest.hexdigest()[:16]]
            return self.digests[name][2]
        except OSError:
            return None
