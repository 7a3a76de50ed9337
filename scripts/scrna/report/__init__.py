"""The report of a dataset: what the steps have left, as one page that needs no network."""
