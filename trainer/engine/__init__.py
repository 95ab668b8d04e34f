"""What a training step is made of, and what survives between steps."""
