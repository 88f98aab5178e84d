import sys
from pathlib import Path

# Benchmarks are scripts outside the package.
sys.path.insert(0, str(Path(__file__).parents[2]))
