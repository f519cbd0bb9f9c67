"""Floor 0: nouns shared by every other part. No torch here."""
