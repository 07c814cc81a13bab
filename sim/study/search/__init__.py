"""Looking for the best settings of a scenario, under limits."""
