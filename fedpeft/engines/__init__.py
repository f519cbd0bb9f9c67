"""Where the same ServerApp and ClientApp run."""
