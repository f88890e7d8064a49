"""External programs as trajectories of a GRPO run: each asks the policy in training through OpenAI's HTTP API."""
