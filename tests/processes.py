"""Processes that begin within milliseconds: forked from one that has imported what takes seconds.

process = processes.fast.Process(target=function, args=(…))
"""

import multiprocessing
import os

fast = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
fast.set_forkserver_preload(["hypothesis", "matplotlib.pyplot", "pytest", "tinyadv"])
