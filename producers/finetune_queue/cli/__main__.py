"""`python -m finetune_queue.cli`: the program, also where no script of its name is installed."""

import sys

from finetune_queue.cli import main

sys.exit(main())
