"""The command line: one file a command group. What a command does stands elsewhere; here it is asked for and shown."""
