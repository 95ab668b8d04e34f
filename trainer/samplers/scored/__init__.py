"""Samplers whose distribution follows a score of each group."""
