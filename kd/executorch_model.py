"""An ExecuTorch program (.pte) as a session that kd.onnx_model.Model runs, with the metadata in a JSON file beside it.

`model.pte` belongs to `model.json`, which has the metadata of an ONNX file and the SHA-256 of the program. A native
library reads the program, and a damaged or hostile one can crash it: so a program is not loaded where its digest is
another, and is tried in a process of its own first. Needs executorch, whose Python runtime needs torch.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from kd import errors, onnx_model
from kd.errors import UserError
from kd.files import read_bytes, read_json, write_json

FORMAT = "medmnist-edgeai/executorch/1"
BATCH = 8               # images in a query, at most: the memory of a program is planned when it is made
IDENTIFIER = b"ET12"    # of the flatbuffer, at its byte 4
TYPES = {0: "tensor(uint8)", 6: "tensor(float)"}  # torch's numbers of types -> ONNX Runtime's names
MEMORY = 2 ** 33        # bytes that the trial may allocate
HINT = "Bring complete copies of both files, or export them again: python export.py RUN --formats executorch"


def open_session(path, threads=0):
    """The Session of a program in a file, with the metadata beside it. threads: 0 for one per core.

    UserError without the runtime, where the metadata are missing or of another program, and where it cannot be run.
    """
    path = Path(path)
    sidecar = path.with_suffix(".json")
    try:
        metadata = read_json(sidecar)
    except UserError as error:
        raise UserError(f"{path} has no metadata: {error.message}", HINT) from None
    if isinstance(metadata, dict) and onnx_model.is_newer(metadata.get("format"), FORMAT):
        raise UserError(f"a newer version of this project wrote {sidecar}", onnx_model.NEWER)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise UserError(f"{sidecar} is not what export.py writes beside an ExecuTorch program", HINT)
    program = read_bytes(path, onnx_model.FILE)
    if program[4:8] != IDENTIFIER:
        raise UserError(f"{path} is not an ExecuTorch program of this version", HINT)
    if hashlib.sha256(program).hexdigest() != metadata.get("sha256"):
        raise UserError(f"{path} is not the program that {sidecar.name} describes", HINT)
    errors.need("torch", "executorch")
    errors.need("executorch", "executorch")
    _try(program, path)
    return Session(program, threads, metadata)


def write_metadata(path, program, metadata):
    """Write beside a program (bytes, in the file `path`) the JSON file that open_session() wants.

    metadata: a dict as kd.edge.convert.describe() returns it.
    """
    write_json(Path(path).with_suffix(".json"),
               {**metadata, "format": FORMAT, "sha256": hashlib.sha256(program).hexdigest()})


def _try(program, path):
    """UserError if a program (bytes, of the file `path`) cannot be loaded and run, or crashes a process of its own."""
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); from kd import executorch_model; "
               "executorch_model.trial()", str(Path(__file__).resolve().parent.parent)]
    try:
        done = subprocess.run(command, input=program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              timeout=onnx_model.PATIENCE)
    except subprocess.TimeoutExpired:
        raise UserError(f"{path} cannot be run: an image takes more than {onnx_model.PATIENCE} s", HINT) from None
    if done.returncode in (-signal.SIGTERM, -getattr(signal, "SIGKILL", signal.SIGTERM)):
        raise UserError(f"{path} cannot be tried: the process that did was ended from outside",
                        "Give the same command again; with too little memory the system ends processes.")
    if done.returncode:
        how = "it crashes the runtime" if done.returncode < 0 else "the runtime refuses it"
        raise UserError(f"{path} cannot be run: {how}", HINT)


def trial():
    """Run the program in the standard input on a black image; for a process of its own, which it ends."""
    with contextlib.suppress(ImportError):  # not on Windows
        import resource
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    session = Session(sys.stdin.buffer.read(), 1)
    session.run(["logits"], {"image": np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8)})
    os._exit(0)  # what the libraries do while the interpreter ends says nothing of the program


class Session:
    """What kd.onnx_model.Model needs of an onnxruntime.InferenceSession, for an ExecuTorch program. Thread-safe.

    program: bytes. threads: of the CPU, for all programs of this process; 0: one per core. metadata: of the JSON.
    RuntimeError, of the runtime, for a program that it refuses.
    """

    def __init__(self, program, threads=0, metadata=None):
        import torch
        with _silent():
            # without executorch.runtime, which imports the compiler as well: seconds
            from executorch.extension.pybindings import _C as runtime
            threads = threads or os.cpu_count()
            if runtime._threadpool_get_thread_count() != threads:
                runtime._unsafe_reset_threadpool(threads)
            self._loaded = runtime._load_program_from_buffer(
                program, program_verification=runtime.Verification.InternalConsistency)
            self._method = self._loaded.load_method("forward")
        self._program, self._metadata = program, metadata or {}  # the runtime reads the bytes while it runs
        self._tensor, self._lock = torch.from_numpy, threading.Lock()

    def run(self, names, inputs):
        """[logits float32 [N, C]] of {"image": uint8 [N, S, S, 3]}, for any N, in queries of BATCH images."""
        images = np.ascontiguousarray(inputs["image"])
        with self._lock:
            parts = [self._method([self._tensor(images[k:k + BATCH])])[0].numpy()
                     for k in range(0, len(images), BATCH)]
        return [parts[0] if len(parts) == 1 else np.concatenate(parts)]

    def get_modelmeta(self):
        texts = onnx_model.encode({key: value for key, value in self._metadata.items() if key != "sha256"})
        return SimpleNamespace(custom_metadata_map={**texts, "format": onnx_model.FORMAT})

    def get_inputs(self):
        ends = self._method.method_meta()
        return [_described("image", ends.input_tensor_meta(k)) for k in range(ends.num_inputs())]

    def get_outputs(self):
        ends = self._method.method_meta()
        return [_described("logits", ends.output_tensor_meta(k)) for k in range(ends.num_outputs())]


def _described(name, tensor):
    """An input or output as ONNX Runtime describes it, with a free batch."""
    return SimpleNamespace(name=name, type=TYPES.get(tensor.dtype(), "another"), shape=["N", *tensor.sizes()[1:]])


@contextlib.contextmanager
def _silent():
    """Send what the native runtime logs about the processor to nowhere."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
