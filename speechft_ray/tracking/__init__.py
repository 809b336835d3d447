"""Views of a sweep outside the store: a log file, and MLflow. Each implements
``sweep.protocols.Tracker`` and no more."""
