"""The bundle: what a training run leaves, and all that the server reads. No torch."""
