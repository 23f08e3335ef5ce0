"""The one reader of a run."""

import hashlib
from pathlib import Path

from kd.files import _reading, read_csv

_SPLITS = {}  # digest of a split.csv -> its rows


def read_split(path):
    """The rows of a split.csv, not to be changed: all runs of a study have the same one, which is parsed and kept once."""
    with _reading(path):
        digest = hashlib.sha256(Path(path).read_bytes()).digest()
    if digest not in _SPLITS:
        if len(_SPLITS) >= 4:
            _SPLITS.clear()
        _SPLITS[digest] = read_csv(path, ("group", "label", "split"))
    return _SPLITS[digest]
