"""What several benchmarks share: bundles to serve, load, timing, plots."""
