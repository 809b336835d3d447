"""The one door to Ray: reaching a cluster, running jobs as Ray tasks, and fine-tuning as Ray Tune
trials."""
