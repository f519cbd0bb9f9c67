"""The server's end: the ServerApp, virtual time, evaluation, checkpoints and the run directory."""
