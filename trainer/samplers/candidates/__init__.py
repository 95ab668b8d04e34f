"""Samplers that try archs on held-out images and train those that they keep."""
