"""The commands of `mmg-bench`, one per file, imported only when called."""
