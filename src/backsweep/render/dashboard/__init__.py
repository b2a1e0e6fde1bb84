"""The dashboard: pages over a store, made on the server, without scripts."""
