"""HTML reports of data sets and runs."""
