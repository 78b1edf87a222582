"""One sweep in a process of its own: `python -m finetune_bench.sweeper` prints what it took as a line of JSON."""

import json
import os
import sys
import time
from pathlib import Path

from finetune_bench import proc
from finetune_queue.messaging import producer_app
from finetune_queue.settings import load_settings
from finetune_worker.container import Container
from finetune_worker.stages.sweep import sweep


def main() -> None:
    """Sweep the default account once, with the settings of the environment."""
    settings = load_settings()
    app = producer_app(settings)
    container = Container.build(settings, app)
    container.presence.announce()
    before = proc.resident(os.getpid())
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (proc(5))
    began = time.perf_counter()
    said = sweep(container, "default")
    took = time.perf_counter() - began
    grown = proc.peak(os.getpid()) - before
    container.close()
    app.close()
    found = {"said": said, "seconds": round(took, 2), "grown_mb": round(grown / 1e6, 1)}
    sys.stdout.write(json.dumps({"sweep": found}) + "\n")


if __name__ == "__main__":
    main()
