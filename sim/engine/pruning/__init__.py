"""Policies that leave work out of a model's layers. Each is one file, and one key of `PruningSettings`."""
