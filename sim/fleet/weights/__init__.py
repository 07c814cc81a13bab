"""Weights of models in the memory of hosts: caches, peers, eviction."""
