"""Floor 3: jobs, from accept to their end."""
