"""ONNX graphs of subnets: a template of each space, exported once and cut for any arch."""
