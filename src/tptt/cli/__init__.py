"""The `tptt` command, one module per verb."""
