"""The networks' derivatives, by hand."""
