"""What fails, and what clients make of it."""
