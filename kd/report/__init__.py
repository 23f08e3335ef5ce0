"""Run folders come in; a report in HTML and PDF with figures, and tables in CSV and LaTeX, come out."""
