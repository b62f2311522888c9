"""Floor 1: PostgreSQL, used openly (row locks, SKIP LOCKED, jsonb); no repository interface in front."""
