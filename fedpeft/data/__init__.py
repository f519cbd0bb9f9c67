"""Tables, where they come from and who holds which rows. Tokenising them is the business of ``fedpeft.tasks``."""
