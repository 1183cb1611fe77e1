"""Real engines: Slurm with two nodes, Ray with three, a schema of Kubernetes. Each test starts and ends its own."""
