"""``python -m tpsprune``."""

from tpsprune.cli import main

main()
