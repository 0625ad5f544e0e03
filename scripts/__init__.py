"""The commands of the workflow, a file for each."""

import os

# PyTorch then asks Linux for large pages, which takes a fifth off a training, since it needs fresh memory all the time.
# It looks once, when it first needs memory, and that is while other modules are imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
