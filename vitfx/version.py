"""The one place that names vitfx's version."""

VERSION = "0.4.1"
