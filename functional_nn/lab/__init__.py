"""The laboratory: data sets, the command line, plots, reports and demonstrations around the library."""
