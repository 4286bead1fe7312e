"""Synthetic experience: augmenters that feed a learner beside its dataset."""
