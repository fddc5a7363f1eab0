"""Ray Serve applications, ready to be deployed: by a notebook, by `serve run`, or by a Serve config file."""
