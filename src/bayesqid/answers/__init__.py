"""Answers: pure functions from a posterior to a Dataset."""
