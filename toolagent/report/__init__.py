"""The parts of the report: what a run left, what follows from it, charts and the page."""
