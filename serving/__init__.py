"""Serving: TensorFlow Serving's wire, a client for it and a local server that speaks it."""
