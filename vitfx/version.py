"""The one place that names vitfx's version."""

VERSION = "0.6.0"
