"""What the commands do; the same functions serve bundle runs and Python."""
