"""Where work runs: this process, processes, Dask, Ray."""
