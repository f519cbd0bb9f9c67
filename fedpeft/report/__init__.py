"""Read a finished (or running) run directory and show it: one HTML page, or trackers that follow along."""
