"""``python -m lit_gamma``."""

from lit_gamma.cli import main

main()
