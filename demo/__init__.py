"""The demo: a drawn world and every stage on it."""
