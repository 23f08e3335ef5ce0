"""Runs and tables of results come in; findings about results that are too odd to be true come out."""
