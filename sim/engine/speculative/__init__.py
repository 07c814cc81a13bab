"""Speculative decoding: tokens are guessed, one step of the model verifies several at once, and what agrees is kept."""
