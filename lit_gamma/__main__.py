"""``python -m lit_gamma``."""

from lit_gamma.cli.entry import main

main()
