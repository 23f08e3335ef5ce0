"""A plan in YAML comes in; tasks that are run once each, and resumed after a stop, come out."""
