"""Records -> one HTML page that needs nothing else to be opened."""
