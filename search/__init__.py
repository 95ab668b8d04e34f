"""The second stage of one-shot NAS (Eq. 1 and 3): what the architecture generator is instead of.

A search tries archs within a budget with the weights of a trained supernet, and needs images and
many evaluations for every budget; the generator needs neither. ``python -m search --help``.
"""

from models.extras import explain_missing

explain_missing("train")
