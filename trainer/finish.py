def finish(*a): return {}
