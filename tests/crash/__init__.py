"""The kill loop: real processes, killed at every failpoint, and a checker that reads what is
left."""
