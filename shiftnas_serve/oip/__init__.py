"""The Open Inference Protocol v2, for clients of KServe and Triton."""
