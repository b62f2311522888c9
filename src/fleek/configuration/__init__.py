"""Where settings come from and what a wrong one is told: files, names, and messages."""
