"""A cluster of real processes that loses a node in the middle of each job."""
