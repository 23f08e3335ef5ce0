"""The command `medmnist-edgeai` of an installed project: it runs a script of this folder as `python SCRIPT.py` does.

    medmnist-edgeai distill --student mobilenetv2 --alpha 0.5
    medmnist-edgeai --help
"""

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ("train_teacher", "distill", "evaluate", "robustness", "export", "benchmark", "predict", "report", "study")

# The scripts import kd, registry and each other from their own folder, which is on the path of this process alone: as
# names in site-packages they would collide with other packages.
sys.path.insert(0, str(FOLDER))
from kd import errors  # noqa: E402


def main():
    """Run the script that the first argument names with the arguments after it."""
    if sys.argv[1:2] and sys.argv[1] in SCRIPTS:
        sys.argv = [str(FOLDER / f"{sys.argv[1]}.py"), *sys.argv[2:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        errors.run(help_or_error)


def help_or_error():
    """Print a line for each script, the first of its docstring. UserError for a name that no script has."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(errors.VERSION)
        return
    if name not in ("-h", "--help"):
        raise errors.UserError(f"there is no command {name!r}",
                               errors.nearest(name, SCRIPTS) or f"There are: {', '.join(SCRIPTS)}.")
    print("usage: medmnist-edgeai COMMAND [OPTIONS]\n")
    for script in SCRIPTS:
        docstring = ast.get_docstring(ast.parse((FOLDER / f"{script}.py").read_text(encoding="utf-8")))
        print(f"  {script:14} {docstring.splitlines()[0]}")
    print(f"\n`python distill.py --help` lists the options of distill. Plans for study are in {FOLDER / 'configs'}")


if __name__ == "__main__":
    main()
