"""One question a script; the last line on stdout is JSON. ``benchmarks/README.md`` lists them."""

from models.extras import explain_missing

explain_missing("bench", "train")
