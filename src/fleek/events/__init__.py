"""Floor 2: the append-only history of jobs, which streams, timelines and checks read."""
