"""The whole job in one run: convert, train, measure, save, reload, generate, report."""
