"""What a result depends on beside its options: versions, hardware, revision."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def describe():
    """Versions, CPU, threads and git revision, as a dict of plain values."""
    import torch
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
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
