"""Where instances come from: one file per kind of place."""
