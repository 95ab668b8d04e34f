"""The HTTP protocol: what comes in over a connection, and what goes out."""
