"""A stack whose workers are of another application, or run their tasks in another kind of pool."""

import os
import sys
from collections.abc import Mapping, Sequence

from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack


class OtherStack(LocalStack):
    """One whose workers are those that its attributes say."""

    application = "finetune_worker"
    pool = "threads"

    def _launch(self, name: str, module: Sequence[str], settings: Mapping[str, str]) -> Child:
        others = {"finetune_worker": self.application, "threads": self.pool}
        words = [others.get(word, word) for word in module]
        # Of this tree, which need not be the one that is installed.
        return super()._launch(name, words, {**settings, "PYTHONPATH": os.pathsep.join(sys.path)})
