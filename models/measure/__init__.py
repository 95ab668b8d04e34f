"""A latency table of this machine: timings of whole subnets, and what their parts take."""
