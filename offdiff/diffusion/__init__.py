"""Trajectory diffusion: denoisers, samplers, guidance, world models."""
