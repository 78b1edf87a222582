"""Reaching URLs that users gave, and nothing that they should not reach.

`addresses` holds the rules, `guard` the connections that keep to them, `fetch` the two things done with them: asking
for a ZIP's size, and downloading it. `guard` and `fetch` need `requests` (the extra `worker`).
"""
