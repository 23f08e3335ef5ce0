"""Models and corruptions come in; the metrics of evaluation under each corruption come out."""
