"""A checkpoint comes in; files for other machines (ONNX, INT8, ExecuTorch, bundle), checked against it, come out."""
