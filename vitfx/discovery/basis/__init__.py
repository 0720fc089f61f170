"""What methods and engines agree on: settings, calibration, the metric, the protocol of questions and answers.

Imports circuits and the wings below it.
"""
