"""Measurements against TVM and ONNX Runtime, and of what the parts of pyvm cost. Run by `python -m tests.bench`."""
