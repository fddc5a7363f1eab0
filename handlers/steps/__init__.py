"""Three steps from naive.py to text_generation.py, for lab 07: to read, not to copy."""
