"""Tables for a paper, as LaTeX for any engine. Whatever stands in a cell is text, never a command.

A table is set in \\footnotesize and fits the text of `article` at 10 points. Long texts are broken into lines; what is
still too wide is divided into parts below each other, each of which repeats the columns that name the rows.
"""

import functools
import re

from kd.text import one_line

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "–": "--",
    "—": "---", "…": r"\ldots{}", "’": "'", "‘": "`", "“": "``", "”": "''", "−": "$-$", "±": r"$\pm$",
    "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$", "→": r"$\rightarrow$",
    "←": r"$\leftarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "°": r"$^\circ$", "²": "$^2$", "³": "$^3$",
    "µ": r"$\mu$",
}
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "κ": "kappa",
          "λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi",
          "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Σ": "Sigma", "Φ": "Phi", "Ω": "Omega"}
_SPECIAL.update({letter: f"$\\{name}$" for letter, name in _GREEK.items()})
ONE_PAGE = 40      # lines; a longer table is set over several pages
TEXT_WIDTH = 340   # points; \\textwidth is 345
GAP = 6            # points between columns
LONGEST = 105      # points: a line of text in a cell, where it can be broken
KEYS_WIDTH = 228   # points: columns that are repeated, together

# Points that characters take in \\footnotesize (8 points, Computer Modern, T1); all others count as 8.5.
_WIDTHS = {width: characters for width, characters in {
    2.4: "!',.:;[]il|", 2.9: " fj-", 3.4: "I()trs", 3.8: "cez", 4.3: '"$*/0123456789\\`ago{}?', 4.8: "JkqvxySbdhnpu",
    5.4: "Z^~L", 6.1: "FEPBCTw", 6.7: "RAHNUVXYDK&+<=>@OQ_G", 7.1: "#%m", 7.8: "M", 8.8: "W",
}.items()}
_WIDTHS = {character: width for width, characters in _WIDTHS.items() for character in characters}


def escape(text, limit=80):
    """`text` on one line of at most `limit` characters. A character that a plain font may lack becomes its code."""
    return "".join(_escaped(character) for character in one_line(text, limit))


def _escaped(character):
    if character in _SPECIAL:
        return _SPECIAL[character]
    in_plain_font = character.isascii() or "À" <= character <= "ſ" and character.isalpha()
    return character if in_plain_font else f"[U+{ord(character):04X}]"


def table(columns, rows, caption, label, keys=1):
    """A floating table, or longtables beyond ONE_PAGE lines. Columns of numbers are flush right.

    columns: headings. rows: lists of as many cells, set as str() gives them. label: becomes `tab:label`. keys: the
    number of first columns that name the rows.
    """
    rows = [[one_line(cell, 80) for cell in row] for row in rows]
    numeric = [bool(rows) and _numeric([row[k] for row in rows]) for k in range(len(columns))]
    keys = max(1, min(keys, len(columns) - 1))
    for longest in (LONGEST, LONGEST / 2, LONGEST / 3):  # of a line in the columns that are repeated
        cells = [[_broken(cell, longest if k < keys else LONGEST) for k, cell in enumerate(row)] for row in rows]
        widths = [max((_width(line) for row in cells for line in row[k]), default=0) for k in range(len(columns))]
        head = [_broken(one_line(column, 80), max(width, min(longest, max(map(_width, column.split()), default=0))))
                for column, width in zip(columns, widths)]
        widths = [max(width, *map(_width, lines)) for width, lines in zip(widths, head)]
        if sum(widths[:keys]) + GAP * keys <= KEYS_WIDTH:
            break
    parts = _parts(widths, keys)
    height = len(parts) * sum(max(map(len, row)) for row in [head, *cells])
    is_long = height > ONE_PAGE
    key = "tab:" + "".join(c if c.isascii() and c.isalnum() else "-" for c in one_line(label))
    title = rf"\caption{{{escape(caption, 400)}}}\label{{{key}}}"
    style = rf"\footnotesize\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}\renewcommand{{\arraystretch}}{{1.1}}"
    packages = ["fontenc", "longtable"] if is_long else ["fontenc"]
    lines = ["% " + " ".join(rf"\usepackage{'[T1]' * (name == 'fontenc')}{{{name}}}" for name in packages)]
    lines += ["{" + style] if is_long else [r"\begin{table}", r"\centering", title, style]
    for number, part in enumerate(parts):
        align = "@{}" + "".join("r" if numeric[k] else "l" for k in part) + "@{}"
        body = [" & ".join(_cell(row[k], "t", numeric[k]) for k in part) + r" \\" for row in cells]
        top = [r"\hline", " & ".join(_cell(head[k], "b", numeric[k]) for k in part) + r" \\", r"\hline"]
        if is_long:
            lines += [rf"\begin{{longtable}}{{{align}}}", *([title + r"\\"] if number == 0 else []), *top, r"\endhead",
                      r"\hline", r"\endfoot", *body, r"\end{longtable}"]
        else:
            lines += [*([r"\par\medskip"] if number else []), rf"\begin{{tabular}}{{{align}}}", *top, *body, r"\hline",
                      r"\end{tabular}"]
    return "\n".join([*lines, "}" if is_long else r"\end{table}", ""])


@functools.lru_cache(maxsize=10_000)  # cells are measured several times, and many are alike
def _width(text):
    """Points that a text takes at most, without line breaks."""
    escapes = (character if character in _WIDTHS else _escaped(character) for character in text)
    return sum(sum(_WIDTHS[c] for c in part) if part.startswith("[U+") or part in _WIDTHS else 8.5 for part in escapes)


def _broken(text, width):
    """`text` in lines of at most `width` points, broken at blanks; in wider words after a mark, else anywhere."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        for piece in [word] if _fits(word, width) else re.findall(r"[^_/=,+-]+[_/=,+-]*|[_/=,+-]+", word):
            for part in [piece] if _fits(piece, width) else piece:
                if lines[-1] and not _fits(lines[-1] + part, width):
                    lines.append("")
                lines[-1] += part
    return [line.rstrip() for line in lines]


def _fits(text, width):
    return _width(text.rstrip()) <= width


def _cell(lines, place, is_number):
    """A cell of one line, or of several that stand below each other. place: t or b, of the line beside other cells."""
    # After a line break, [ and * are read as its argument.
    escaped = [f"{{{line[0]}}}{line[1:]}" if line[:1] in ("[", "*") else line for line in map(escape, lines)]
    if len(escaped) == 1:
        return escaped[0]
    start = rf"\begin{{tabular}}[{place}]{{@{{}}{'r' if is_number else 'l'}@{{}}}}"
    return start + r"\\".join(escaped) + r"\end{tabular}"


def _parts(widths, keys):
    """Lists of column numbers, each as wide as the text; all begin with the first `keys` columns."""
    room, parts, left = TEXT_WIDTH - sum(widths[:keys]) - GAP * keys, [], -1
    for k in range(keys, len(widths)):
        if not parts or widths[k] > left:
            parts.append(list(range(keys)))
            left = room
        parts[-1].append(k)
        left -= widths[k] + GAP
    return parts or [list(range(len(widths)))]


def _numeric(cells):
    return all(cell in ("", "n/a", "–") or cell.lstrip("+-−<≤≥.")[:1].isdigit() for cell in cells)
