"""Other processors, emulated: an x86 without VNNI, and ARM cores with a Debian and the three packages of a bundle.

User-mode emulation (qemu-user-static) runs programs of another processor as processes of this machine: their answers
are those of that processor, their times are not. Debian's packages and the wheels are downloaded into a folder, beside
the packages of this machine. QEMU redirects what a program opens to that folder if it exists there, and to this machine
otherwise; so Python is given the folder's own paths.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCE = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian bookworm main\n"
PYTHON = "3.11"  # of this Debian
PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6")
PLATFORMS = [f"manylinux{version}_aarch64" for version in ("_2_28", "_2_27", "_2_26", "_2_17", "2014")]

X86 = "Haswell"  # AVX2; neither AVX-512 nor VNNI, which QEMU does not emulate
# What ONNX Runtime multiplies with on them is known from the instructions that were seen: SMLAL; UDOT, SDOT; UMMLA.
ARM = {"cortex-a53": "ARMv8.0", "neoverse-n1": "dot product", "max": "8-bit matrix product"}


@dataclass
class Machine:
    """A processor with Python. command: what to write before the words of Python; environment: what is set for it."""

    command: list
    environment: dict = field(default_factory=dict)

    def run(self, *words, folder, status=0):
        """What Python prints there, with `words` on its command line, in a folder. RuntimeError on another status."""
        done = subprocess.run([*map(str, self.command), *map(str, words)], cwd=folder, text=True, encoding="utf-8",
                              env={**os.environ, **self.environment}, capture_output=True)
        if done.returncode != status:
            raise RuntimeError(f"{self.command[:3]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout


def here(packages=None):
    """The Machine without emulation. packages: a folder as install() makes it, in place of what is installed."""
    return Machine([sys.executable], {"PYTHONPATH": str(packages)} if packages else {})


def x86(processor=X86):
    """The Machine with another x86 processor and what is installed here."""
    return Machine(["qemu-x86_64-static", "-cpu", processor, sys.executable])


def arm(debian, packages, core, *options):
    """The Machine with an ARM core. debian, packages: folders of unpack() and install(). options: more of QEMU's."""
    root = Path(debian).resolve()
    command = ["qemu-aarch64-static", "-cpu", core, "-L", root, *options, root / "usr" / "bin" / f"python{PYTHON}"]
    return Machine(command, {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(Path(packages).resolve()),
                             "HOME": str(root), "XDG_CACHE_HOME": str(root), "TMPDIR": str(root)})


def missing():
    """What is not on this machine of what emulation of ARM needs, as a text; empty if nothing is missing."""
    tools = [tool for tool in ("qemu-aarch64-static", "apt-get", "dpkg") if not shutil.which(tool)]
    return ", ".join([*tools, *([] if KEYRING.is_file() else [str(KEYRING)])])


def unpack(folder):
    """Download Debian's Python for arm64 with all that it depends on, and unpack it into a new folder; 100 MB."""
    folder = Path(folder).resolve()
    apt = folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "sources.list").write_text(SOURCE)
    (apt / "status").touch()  # nothing is installed there
    # apt's own settings would be those of this machine; all of its files are below `apt`
    (apt / "apt.conf").write_text(f"""
        Dir "{apt}"; Dir::Etc "{apt}"; Dir::Etc::sourcelist "{apt}/sources.list";
        Dir::State "{apt}"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}"; Dir::Log "{apt}";
        APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }};
        APT::Install-Recommends "false"; APT::Sandbox::User "root"; Acquire::Languages "none";
        """)
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "TMPDIR": str(apt)}
    for words in (["update"], ["install", "--yes", "--download-only", *PACKAGES]):
        _call(["apt-get", "-qq", *words], environment)
    for archive in sorted((apt / "archives").glob("*.deb")):
        _call(["dpkg", "-x", archive, folder], environment)
    shutil.rmtree(apt)


def install(folder, *requirements, platforms=PLATFORMS):
    """Download wheels into a folder, by default those for ARM. requirements: as pip takes them, without dependencies.

    platforms: as in the names of wheels; none for this machine and this Python.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    words = [word for platform in platforms for word in ("--platform", platform)]
    if platforms:
        words += ["--python-version", PYTHON]
    _call([sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps", "--only-binary=:all:",
           "--target", folder, *words, *requirements], {**os.environ, "TMPDIR": str(folder)})


def _call(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")
