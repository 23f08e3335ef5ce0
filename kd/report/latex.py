"""Tables for a paper, as LaTeX for any engine. Whatever stands in a cell is text, never a command."""

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
ONE_PAGE = 40  # rows; a longer table is set over several pages


def escape(text, limit=80):
    """`text` on one line of at most `limit` characters. A character that a plain font may lack becomes its code."""
    return "".join(_escaped(character) for character in one_line(text, limit))


def _escaped(character):
    if character in _SPECIAL:
        return _SPECIAL[character]
    in_plain_font = character.isascii() or "À" <= character <= "ſ" and character.isalpha()
    return character if in_plain_font else f"[U+{ord(character):04X}]"


def table(columns, rows, caption, label):
    """A floating table, or a longtable beyond ONE_PAGE rows. Columns of numbers are flush right.

    columns: headings. rows: lists of as many cells, set as str() gives them. label: becomes `tab:label`.
    """
    columns, rows = [escape(column) for column in columns], [[escape(cell) for cell in row] for row in rows]
    cells_of_columns = zip(*rows) if rows else [()] * len(columns)
    align = "".join("r" if cells and _numeric(cells) else "l" for cells in cells_of_columns)
    key = "tab:" + "".join(c if c.isascii() and c.isalnum() else "-" for c in one_line(label))
    title = rf"\caption{{{escape(caption, 400)}}}\label{{{key}}}"
    head = [r"\toprule", " & ".join(columns) + r" \\", r"\midrule"]
    body = [" & ".join(cells) + r" \\" for cells in rows]
    if len(rows) > ONE_PAGE:
        packages = "booktabs, longtable"
        lines = [
            rf"\begin{{longtable}}{{{align}}}", title + r"\\", *head, r"\endhead", r"\bottomrule", r"\endfoot",
            *body, r"\end{longtable}",
        ]
    else:
        packages = "booktabs"
        lines = [
            r"\begin{table}", r"\centering", title, rf"\begin{{tabular}}{{{align}}}", *head, *body,
            r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]
    return "\n".join([rf"% \usepackage{{{packages}}} \usepackage[T1]{{fontenc}}", *lines, ""])


def _numeric(cells):
    return all(cell in ("", "n/a") or cell.lstrip("$+-.")[:1].isdigit() for cell in cells)
