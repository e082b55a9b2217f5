"""What a run takes, planned from the base's configuration alone."""
