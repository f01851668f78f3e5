"""Commands that parse options and print results. Other packages do the work."""
