"""What answers: real servers as well-behaved child processes (`process`), and each engine on top of that."""
