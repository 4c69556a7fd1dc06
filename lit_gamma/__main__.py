"""``python -m lit_gamma``."""

from lit_gamma.cli.lightning_cli import main

main()
