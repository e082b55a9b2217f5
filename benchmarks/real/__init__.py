"""A real pretrained model measured as the field measures: RULER, real passages, bytes, at equal bytes."""
