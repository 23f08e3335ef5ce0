"""Options come in; a finished run (weights, predictions, history) comes out. loop.py is the whole of distillation."""
