"""The architecture generator (AG): from a budget to an arch that keeps it."""
