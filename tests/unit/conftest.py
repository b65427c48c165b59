"""Unit tests import their fakes by name, and compute in one thread: their models are tiny, and
threads that wait for each other take minutes where something else uses the cores, too."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # Read by torch when it is imported.
sys.path.insert(0, str(Path(__file__).parent))
