"""Optimizers, and schedules as pure functions of the step."""
