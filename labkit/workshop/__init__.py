"""What an instructor needs: is the room ready (`readiness`, `room`), where is everybody (`learners`), the solutions."""
