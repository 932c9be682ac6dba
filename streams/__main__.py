"""`python -m streams` is `refold`."""

from streams.cli.main import main

main()
