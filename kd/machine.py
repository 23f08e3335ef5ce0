"""What a latency depends on beside the model: processor, instruction set, clock, load, memory."""

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "asimddp", "i8mm", "sve", "bf16")
PACKAGES = ("numpy", "onnxruntime", "torch")


def describe():
    """A dict of plain values; what this system does not tell is None."""
    return {"cpu": cpu_name(), "instructions": " ".join(instructions()) or None, "cores": os.cpu_count(),
            "governor": governor(), "load": load(), "platform": platform.platform(terse=True),
            "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def line(state):
    """What describe() tells, as the head of a benchmark."""
    return f"{state['cpu']} ({state['instructions']}), load {state['load']}, torch {state['torch']}"


def instructions():
    """Those of SETS, which matter for low precision, that the processor has."""
    if sys.platform == "darwin":
        found = _output("sysctl", "-a", "hw.optional").lower()
        return [name for name, key in (("asimddp", "feat_dotprod: 1"), ("i8mm", "feat_i8mm: 1"), ("bf16", "feat_bf16: 1"),
                                       ("avx2", "avx2_0: 1"), ("avx512f", "avx512f: 1")) if key in found]
    text = _text("/proc/cpuinfo") or ""
    flags = next((line for line in text.splitlines() if line.split(":")[0].strip() in ("flags", "Features")), "").split()
    return [name for name in SETS if name in flags]


def governor():
    """The frequency governor of the first core."""
    return (_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "").strip() or None


def load():
    """Processes that ran or waited on average over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory():
    """The largest resident set of this process so far, bytes; None where the system does not tell.

    Not getrusage on Linux: a child's begins with its parent's peak.
    """
    if sys.platform == "linux":
        line = next((line for line in (_text("/proc/self/status") or "").splitlines() if line.startswith("VmHWM:")), None)
        return int(line.split()[1]) * 1024 if line else None
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
    """Let the C library keep what is freed, where it is glibc: training takes and frees the same memory in each step.

    Large blocks otherwise go back to the system each time, and the pages of the next ones come from it anew: a tenth of
    the time of a step at 224 px.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)   # M_MMAP_MAX: large blocks, too, come from the heap
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: its end is never given back


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


ENVIRONMENT_PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def environment():
    """Versions, CPU, threads and git revision, as a dict of plain values."""
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
        "git": git_revision(),
    }


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_revision(file=__file__):
    """The commit of the project that `file` belongs to, with `+changes` where files differ from it.

    None where git does not know the file: installed elsewhere, or copied without its history.
    """
    def git(*arguments):
        return subprocess.run(["git", "-C", Path(file).parent, *arguments], capture_output=True, text=True,
                              check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(file).name)  # else the folder around may be another project's
        return git("rev-parse", "HEAD").strip()[:12] + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
