"""Images in files come in; batches for training and evaluation come out."""
