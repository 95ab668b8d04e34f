"""How a supernet is trained. Imports models, never shiftnas_serve."""
