"""Several engines behind a router."""
