"""Trackers: a log file and MLflow. Each implements ``sweep.protocols.Tracker`` and nothing more."""
