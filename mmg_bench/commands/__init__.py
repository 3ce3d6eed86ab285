"""What the commands of `mmg-bench` do: a file each, imported only when it is called."""
