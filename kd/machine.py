"""The machine and its software: processor, instruction set, clock, load, memory, versions."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from kd import __version__

SETS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "asimddp", "i8mm", "sve",
    "bf16",
)
PACKAGES = ("numpy", "onnxruntime", "torch")
ENVIRONMENT_PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def describe():
    """What a latency depends on beside the model, as a dict of plain values; None for what is unknown on this system.

    load: processes that ran or waited, mean over the last minute.
    """
    return {"cpu": cpu_name(), "instructions": " ".join(instructions()) or None, "cores": os.cpu_count(),
            "governor": governor(), "load": load(), "platform": platform.platform(terse=True),
            "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def cache_folder():
    """The folder of this project in the user's cache folder; it may not exist."""
    if sys.platform == "win32":
        user = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        user = Path.home() / "Library" / "Caches"
    else:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "medmnist-edgeai"


def line(state):
    """The result of describe() as one line, for the head of a benchmark."""
    return f"{state['cpu']} ({state['instructions']}), load {state['load']}, torch {state['torch']}"


def instructions():
    """The instruction sets of the processor that are in SETS, which matter for low precision; a list of names."""
    if sys.platform == "darwin":
        features = _output("sysctl", "-a", "hw.optional").lower()
        keys = {"asimddp": "feat_dotprod: 1", "i8mm": "feat_i8mm: 1", "bf16": "feat_bf16: 1", "avx2": "avx2_0: 1",
                "avx512f": "avx512f: 1"}
        return [name for name, key in keys.items() if key in features]
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    flags = next((line for line in lines if line.split(":")[0].strip() in ("flags", "Features")), "").split()
    return [name for name in SETS if name in flags]


def governor():
    """The frequency governor of the first core, for example `performance`; None if unknown."""
    return (_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "").strip() or None


def load():
    """The load: processes that ran or waited, mean over the last minute; None on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory():
    """The largest resident set of this process so far, in bytes; None if unknown.

    On Linux not from getrusage, where the value of a child process starts at the peak of its parent.
    """
    if sys.platform == "linux":
        lines = (_text("/proc/self/status") or "").splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        return int(peak.split()[1]) * 1024 if peak else None
    if os.name == "nt":
        class Counters(ctypes.Structure):
            _fields_ = [("cb", ctypes.c_uint32), ("faults", ctypes.c_uint32),
                        *((name, ctypes.c_size_t) for name in ("peak", "now", "a", "b", "c", "d", "page", "page_peak"))]
        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel = ctypes.windll.kernel32
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        query = kernel.K32GetProcessMemoryInfo
        query.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
        return counters.peak if query(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb) else None
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_memory():
    """Let glibc keep freed memory for this process, because training needs the same memory again in each step.

    Otherwise large blocks are returned to the system and requested again, which takes a tenth of the time of a step at
    224 px. Does nothing with other C libraries.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)   # M_MMAP_MAX: allocate large blocks on the heap, too
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never return the end of the heap to the system


def _text(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def environment():
    """Versions, CPU, GPUs, threads and git revision, for environment.json: a dict of plain values."""
    import torch
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ENVIRONMENT_PACKAGES},
        "platform": platform.platform(terse=True),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpus,
        "medmnist-edgeai": __version__,
        "git": git_revision(),
    }


def version(package):
    """The version of an installed package, a string; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name():
    """The model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def processor():
    """The model name of the processor and its instruction sets that are in SETS, or else its architecture; a string."""
    return f"{cpu_name()} ({' '.join(instructions()) or platform.machine()})"


def git_revision(file=__file__):
    """The commit of the project that `file` belongs to, 12 hex digits, with `+changes` if files differ from it.

    None if the file is not in a git repository: installed elsewhere, or copied without its history.
    """
    def git(*arguments):
        return subprocess.run(["git", "-C", Path(file).parent, *arguments], capture_output=True, text=True,
                              check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(file).name)  # the repository may belong to another project
        commit = git("rev-parse", "HEAD").strip()[:12]
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
