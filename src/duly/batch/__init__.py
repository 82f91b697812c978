"""Batch: a query becomes a file and the file is delivered, restartable to the row."""
