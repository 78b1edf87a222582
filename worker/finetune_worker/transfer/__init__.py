"""Datasets up, weights down: streamed, checked while they move, and safe to cut at any byte."""
