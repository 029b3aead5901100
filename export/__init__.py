"""Export: a trained captioner becomes a SavedModel that TensorFlow Serving loads."""
