"""Write the table of metrics in docs/metrics.md from the metrics themselves.

    python -m ops.metrics_table [--check]

With `--check` it writes nothing and says whether the file differs.
"""

import sys

from ops.generated import ROOT, main, replace_block

from finetune_queue.gateway.gauges import GAUGES
from finetune_queue.gateway.metrics import OF_PROCESS
from finetune_queue.store import COUNTED, Metric

PAGE = ROOT / "docs" / "metrics.md"


def table() -> str:
    """Return the Markdown table of all metrics."""
    rows = [_row(metric) for metric in (*GAUGES, *COUNTED, *OF_PROCESS)]
    return "\n".join(["| Metric | Kind | Labels | Meaning |", "|---|---|---|---|", *rows])


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |".replace("|  |", "| |")


if __name__ == "__main__":
    sys.exit(main({PAGE: replace_block(PAGE, "metrics", table())}))
