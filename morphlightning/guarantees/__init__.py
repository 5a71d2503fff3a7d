"""Guarantees about a network: mathematics that needs torch alone, a room for each subject."""
