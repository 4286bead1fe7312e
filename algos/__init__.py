"""Floor 3: offline learners, one file each, and the batched networks they share."""
