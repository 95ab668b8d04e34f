"""How a supernet is trained. Imports models, never shiftnas_serve."""

from models.extras import explain_missing

explain_missing("train")
