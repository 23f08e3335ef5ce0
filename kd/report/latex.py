"""Tables for a paper, as LaTeX that any engine sets: whatever stands in a cell is text, never a command."""

from kd.text import one_line

_SPECIAL = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
            "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
            "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
            "–": "--", "—": "---", "…": r"\ldots{}", "’": "'", "‘": "`", "“": "``", "”": "''", "−": "$-$",
            "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$",
            "→": r"$\rightarrow$", "←": r"$\leftarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "°": r"$^\circ$",
            "²": "$^2$", "³": "$^3$", "µ": r"$\mu$"}
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "κ": "kappa",
          "λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi",
          "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Σ": "Sigma", "Φ": "Phi", "Ω": "Omega"}
_SPECIAL.update({letter: f"$\\{name}$" for letter, name in _GREEK.items()})
ONE_PAGE = 40  # rows; a longer table may break over pages


def escape(text, most=80):
    """`text` on one line of at most `most` characters; a letter that a plain font may lack becomes its code point."""
    return "".join(_SPECIAL.get(c) or (c if c.isascii() or "À" <= c <= "ſ" and c.isalpha() else f"[U+{ord(c):04X}]")
                   for c in one_line(text, most))


def table(columns, rows, caption, label):
    """A floating table, or beyond ONE_PAGE rows a longtable; numbers are flush right.

    columns: headings; rows: lists of as many cells, shown as str() gives them.
    """
    columns, rows = [escape(column) for column in columns], [[escape(cell) for cell in row] for row in rows]
    align = "".join("r" if rows and all(_is_number(cell) for cell in column) else "l"
                    for column in (zip(*rows) if rows else columns))
    key = "tab:" + "".join(c if c.isascii() and c.isalnum() else "-" for c in one_line(label))
    head = [r"\toprule", " & ".join(columns) + r" \\", r"\midrule"]
    body = [" & ".join(cells) + r" \\" for cells in rows]
    title = rf"\caption{{{escape(caption, 400)}}}\label{{{key}}}"
    if len(rows) > ONE_PAGE:
        needs, lines = "booktabs, longtable", [rf"\begin{{longtable}}{{{align}}}", title + r"\\", *head, r"\endhead",
                                               r"\bottomrule", r"\endfoot", *body, r"\end{longtable}"]
    else:
        needs, lines = "booktabs", [r"\begin{table}", r"\centering", title, rf"\begin{{tabular}}{{{align}}}", *head, *body,
                                    r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([rf"% \usepackage{{{needs}}} \usepackage[T1]{{fontenc}}", *lines, ""])


def _is_number(cell):
    return cell in ("", "n/a") or cell.lstrip("$+-.")[:1].isdigit()
