"""The parts of `python -m toolagent.explain`: the microscope, its probes, and its views."""
