"""The Redis server's clock. All stored times are by it, except events': the machines' own clocks may differ."""

import redis


def server_ms(client: redis.Redis) -> int:
    """Return the server's time in milliseconds since 1970."""
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000
