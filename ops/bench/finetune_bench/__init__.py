"""Benchmarks: how an account's calls are spent, side by side with other ways to do it, and what many jobs cost.

`python -m finetune_bench --help`. Every figure is a ratio, or is measured beside its comparison in the same run.
"""
