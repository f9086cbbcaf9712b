"""Conformance suites that ship: subclass one, and pytest checks your store or adapter as it checks ours."""
