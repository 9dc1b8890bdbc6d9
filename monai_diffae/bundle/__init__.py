"""Bundle folders: their files, configuration, checks, and the trained models in them."""
