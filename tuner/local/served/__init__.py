"""The local service on a port: the same handler over HTTP, with signatures, and what is sent to other services."""
