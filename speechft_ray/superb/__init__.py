"""Evaluates frozen encoders on SUPERB tasks. Tasks are data, measures are functions, and one probe
trainer serves all tasks."""
