"""Floor 2: log records that are kept as rows, for whoever asks what happened to a job."""
