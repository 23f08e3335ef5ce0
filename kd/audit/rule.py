"""What a rule of the audit is: a function, and the texts of its findings. The rules are in the rules_*.py beside.

The names of a function's parameters are the attributes of a Case (kd/audit/evidence.py) that the rule reads. The
rule is applied to each Case that has all of them; a parameter with a default may be missing. A parameter `cases`
takes all Cases at once that have the attribute `requires`; `comparable_cases` takes the same where there are two or
more. A function yields texts that say what is odd, or (severity, text) where the severity is not the rule's own.
Its decorator has the texts `why` and `do` of its findings; they stand in the place of a docstring.
"""

import inspect
from dataclasses import dataclass
from typing import Callable

SEVERITIES = ("error", "warning", "note")
RULES = []


@dataclass
class Rule:
    """A check, with the texts of its findings.

    requires: the attribute that a Case must have to be among `cases` or `comparable_cases`; None: every Case is.
    """

    name: str
    severity: str
    why: str
    do: str
    requires: str
    check: Callable

    def __post_init__(self):
        parameters = inspect.signature(self.check).parameters.values()
        self.parameters = [p.name for p in parameters]
        self.required = [p.name for p in parameters if p.default is p.empty]

    def apply(self, cases):
        """(findings, whether any of the Cases has what the rule reads)."""
        if self.parameters in (["cases"], ["comparable_cases"]):
            cases = [case for case in cases if not self.requires or _known(getattr(case, self.requires))]
            fewest = 2 if self.parameters == ["comparable_cases"] else 1
            if len(cases) < fewest:
                return [], False
            return [self.finding(observation) for observation in self.check(cases)], True
        cases = [case for case in cases if all(_known(getattr(case, name)) for name in self.required)]
        findings = []
        for case in cases:
            arguments = {name: getattr(case, name) for name in self.parameters}
            findings += [self.finding(observation, case) for observation in self.check(**arguments)]
        return findings, bool(cases)

    def finding(self, observation, case=None):
        """A FINDING of what a check has yielded, with the name of the Case before its text."""
        severity, text = observation if isinstance(observation, tuple) else (self.severity, observation)
        prefix = f"{case.name}: " if case and case.name else ""
        return {"rule": self.name, "severity": severity, "saw": prefix + text, "why": self.why, "do": self.do}


def rule(severity, why, do, requires=None):
    """Decorator that adds a function to RULES, under the function's name."""
    def add(check):
        RULES.append(Rule(check.__name__.replace("_", "-"), severity, why, do, requires, check))
        return check
    return add


def _known(value):
    return value not in (None, False) if not hasattr(value, "__len__") else len(value) > 0
