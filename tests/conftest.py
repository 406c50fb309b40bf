"""For all tests: one thread a process and no GPU, here and in the processes that tests start.

The toy models gain nothing from more, and how threads or a GPU's kernels share a sum changes its last bits: an
interrupted run and an unbroken one are compared bit for bit, across processes. `make test-gpu` is for what a GPU shows.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
if os.environ.get("KDTRANS_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
