"""Floor 1: PostgreSQL and Valkey from wheels, as children of this process, on Unix sockets in a home."""
