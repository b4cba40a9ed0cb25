"""Inference: cells to posterior. The only part that imports PyMC."""
