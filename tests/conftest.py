"""For all tests: one thread a process, here and in the processes that tests start.

The toy models gain nothing from more, and how threads share a sum changes its last bits: an interrupted run and an
unbroken one are compared bit for bit, across processes.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
