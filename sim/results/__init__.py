"""Tables, metrics and the report of a run, simulated or measured."""
