"""Planners, imported as `offdiff.planners`: they imagine what may come before they act."""
