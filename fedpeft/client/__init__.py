"""The client's end: training on local data, and the ClientApp around it."""
