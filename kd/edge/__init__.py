"""A checkpoint comes in; files for other machines (ONNX, INT8, TorchScript, a bundle), each checked against it, come out."""
