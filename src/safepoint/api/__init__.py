"""The public API: checkpoints, managers, policies, whole models."""
