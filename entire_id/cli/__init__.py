"""The command line: one library call a verb. Nothing else in the package prints."""
