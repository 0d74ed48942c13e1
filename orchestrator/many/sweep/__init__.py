"""Many cells, each a run: what a matrix file asks for, in an order and at a width that suit the host or a cluster."""
