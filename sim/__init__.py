"""What a fleet would do: engines, the fleet around them, studies over them, and their results."""
