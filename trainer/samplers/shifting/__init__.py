"""Samplers that move a distribution over FLOPs groups by what an update measures."""
