"""What a search space is: archs, sizes, FLOPs, slices. Only ``relaxed`` imports torch."""
