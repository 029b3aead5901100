"""Beam pipelines: preprocessing and bulk captioning."""

import logging

# Beam without its gcp extra says so at every import, through the root logger.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
