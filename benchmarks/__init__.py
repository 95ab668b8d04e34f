"""One question a script; the last line on stdout is JSON. ``benchmarks/README.md`` lists them."""
