"""Importers: other people's results to cells."""
