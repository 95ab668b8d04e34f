"""What a subnet is: search spaces, FLOPs, weight sharing, the architecture generator, bundles.

The modules at this level import no torch unless their docstring says so: the server needs that.
"""

__version__ = "0.1.0"
PRODUCT = f"shiftnas-serve {__version__}"
"""What every command prints for ``--version``."""
