"""Floor 1: one way in for every dataset, and the buffer that learners sample from."""
