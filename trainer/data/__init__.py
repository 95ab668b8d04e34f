"""From files to batches: where images come from, their splits, and their augmentation."""
