"""The parts of the page that ``models.report`` writes: what each shows, as small values for the template."""
