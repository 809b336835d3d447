"""One file per task; each registers itself. ``base`` holds the interface, modules with an
underscore what tasks share."""
