"""The command line: what a person types and sees. Nothing heavy is imported before it is needed."""
