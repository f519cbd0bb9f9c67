"""How a frozen model becomes tunable: one file a method."""
