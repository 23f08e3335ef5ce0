"""All rules of the audit: importing this module collects them from the modules beside it."""

from kd.audit import (  # noqa: F401
    rules_choices,
    rules_metrics,
    rules_predictions,
    rules_runs,
    rules_splits,
    rules_tables,
)
from kd.audit.rule import RULES, SEVERITIES  # noqa: F401
