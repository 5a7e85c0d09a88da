"""Declared tables, clinical parameters and the Result row: what the rooms hand to each other."""
