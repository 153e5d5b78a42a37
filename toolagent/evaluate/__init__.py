"""Certifying an agent: on every problem of a finite stage, or on given ones."""
