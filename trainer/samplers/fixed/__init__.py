"""Samplers that learn nothing: what a shift is compared with."""
