"""What is measured of duly: whole programs that a user could have written, one process each."""
