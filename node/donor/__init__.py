"""The donor: the programs that lend a machine to the federation and run other people's jobs on it."""
