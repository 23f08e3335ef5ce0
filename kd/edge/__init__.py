"""A checkpoint comes in; files for other machines (ONNX, INT8, TorchScript, bundle), checked against it, come out."""
