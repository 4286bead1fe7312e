"""Planners, imported as `offdiff.planners`: empty until the diffusion models arrive."""
