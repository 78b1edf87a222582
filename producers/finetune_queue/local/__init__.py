"""The whole system on one machine, as child processes: Valkey, sandbox, worker and Flower.

It serves the demo, `make up` and the tests. Only the CLI imports it, late.
"""
