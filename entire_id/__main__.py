"""`python -m entire_id` is `entire-id`."""

from entire_id.cli.main import main

main()
