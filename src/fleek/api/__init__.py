"""Floor 5: HTTP. Routes read a request, call a service and answer; they decide nothing else."""
