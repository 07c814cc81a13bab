"""Links that transfers share, and what kinds there are."""
