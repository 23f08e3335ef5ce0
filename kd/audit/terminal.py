"""The audit's findings as text for a terminal."""

import textwrap

from kd.audit import examine
from kd.text import TERMINAL_WIDTH


def findings_text(findings, brief=False):
    """Findings as text, the most severe first, those of one rule together; '' for none.

    brief: notes are counted, not printed.
    """
    notes = [finding for finding in findings if finding["severity"] == "note"] if brief else []
    parts = []
    for group in examine.grouped([finding for finding in findings if finding not in notes]):
        parts.append(f"{group['severity']}: {group['rule']}")
        entries = [*(("saw", text) for text in group["saw"]), ("why", group["why"]), ("do", group["do"])]
        for key, text in entries:
            parts.append(textwrap.fill(f"{key}: {text}", TERMINAL_WIDTH, initial_indent="  ", subsequent_indent="    "))
    if notes:
        parts.append(f"notes not shown: {len(notes)}; evaluate.py --audit prints them.")
    return "\n".join(parts)
