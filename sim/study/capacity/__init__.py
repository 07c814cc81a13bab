"""The largest rate that keeps an SLO, and the fewest replicas for a rate."""
