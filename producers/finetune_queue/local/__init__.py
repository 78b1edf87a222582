"""The whole system on one machine, as child processes: Valkey, sandbox, workers, Flower and the gateway.

It serves the demo, `make up` and the tests. Only the CLI imports it, late.
"""
