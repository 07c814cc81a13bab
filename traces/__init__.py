"""What arrives: the canonical request table, one reader a public format, the synthetic generators."""
