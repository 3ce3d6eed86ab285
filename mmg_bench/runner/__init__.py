"""The one pass over a benchmark that answers every question in every cell."""
