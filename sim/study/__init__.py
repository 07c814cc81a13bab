"""Scenarios and studies over them."""
