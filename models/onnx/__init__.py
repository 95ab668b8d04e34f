"""ONNX graphs of subnets: a template of each space, exported once and cut for any arch."""

OPSET = 20
"""The version of ONNX's operators that templates and exported models are written in."""
