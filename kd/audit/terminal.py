"""The audit's findings as text for a terminal."""

import textwrap

from kd.audit import examine
from kd.text import TERMINAL_WIDTH


def findings_text(findings, brief=False):
    """Findings of the audit, the gravest first, those of one rule together; brief: notes are only counted."""
    notes = [f for f in findings if f["severity"] == "note"] if brief else []
    parts = []
    for group in examine.grouped([f for f in findings if f not in notes]):
        parts.append(f"{group['severity']}: {group['rule']}")
        lines = [*(("saw", saw) for saw in group["saw"]), ("why", group["why"]), ("do", group["do"])]
        parts += [textwrap.fill(f"{key}: {text}", TERMINAL_WIDTH, initial_indent="  ", subsequent_indent="    ")
                  for key, text in lines]
    if notes:
        parts.append(f"notes not shown: {len(notes)}; --audit prints them.")
    return "\n".join(parts)
