"""How rare, how true and how complete made images are, measured on features beside real ones."""
