"""What belongs to one lab: its exercises, and the code that only its notebook uses."""
