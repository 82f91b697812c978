"""What `make` runs: the environment, the lock, the servers, the suites.  Standard library only."""
