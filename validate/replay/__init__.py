"""Replay of a trace in real time: arrivals by the clock, later turns after their parents."""
