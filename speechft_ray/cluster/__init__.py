"""Layer 3: the only package that imports Ray. Connects, runs jobs as Ray tasks and Tune trials."""
