"""What one sees of a run: its log, its screen, its plots, its report."""
