"""Parts of launch/tpu_pod.py: the state machine, the calls of gcloud, what is shipped, what the hosts run."""
